"""Replay a trace of gang jobs in a queueing policy: ``python -m benchmarks.replay queue --jobs jobs.csv --nodes 8 --gpus-per-node 8``.

The last line of the output is JSON. Where the file has the columns ``institution,home_region``, each home region is a region of
the size given, and the JSON has the same figures for each institution.

``srtf`` and ``srsf`` are the published yardsticks (``protocol``); the other policies are the presets of the product's planner, run by
its own engine on a virtual clock. ``--learned-runtimes``: the runtimes of jobs that have not ended are not known, only predicted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

from benchmarks.replay import protocol
from benchmarks.replay.trace import BadInput, Cluster, Job, Outcome, metrics, read_jobs

YARDSTICKS = ("srtf", "srsf")
PRESETS = ("fair", "fifo", "shortest", "suanli")
KNOWN, LEARNED = "known", "learned"
MAX_GPUS = 1_000_000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m benchmarks.replay queue", allow_abbrev=False)
    parser.add_argument(
        "--jobs", type=Path, required=True, help="the trace, as ../shared/traces/philly-muri/jobs_trace1.csv"
    )
    parser.add_argument("--nodes", type=int, default=8, help="nodes in each region (8)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs on each node (8)")
    parser.add_argument("--policy", choices=(*PRESETS, *YARDSTICKS), default="suanli", help="who goes next (suanli)")
    runtimes = parser.add_mutually_exclusive_group()
    runtimes.add_argument("--known-runtimes", dest="runtimes", action="store_const", const=KNOWN, help="the default")
    runtimes.add_argument("--learned-runtimes", dest="runtimes", action="store_const", const=LEARNED)
    parser.set_defaults(runtimes=KNOWN)
    arguments = parser.parse_args(argv)
    for name in ("nodes", "gpus_per_node"):
        if getattr(arguments, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.nodes * arguments.gpus_per_node > MAX_GPUS:
        raise BadInput(f"--nodes times --gpus-per-node must be at most {MAX_GPUS}")
    if arguments.policy in YARDSTICKS and arguments.runtimes == LEARNED:
        raise BadInput(f"--policy {arguments.policy} is defined for known runtimes only")
    return arguments


def run(jobs: list[Job], cluster: Cluster, policy: str, runtimes: str) -> list[Outcome]:
    """Replay; one outcome for each job, in their order. BadInput when a gang can never fit."""
    cluster.check(jobs)
    if policy in YARDSTICKS:
        return protocol.replay(jobs, cluster, by_service=policy == "srsf")
    raise BadInput(f"--policy {policy} is not available in this version")


def summary(outcomes: list[Outcome], cluster: Cluster) -> dict[str, object]:
    """The figures over all jobs, and by institution where there are any."""
    figures: dict[str, object] = {**metrics(outcomes, cluster.region_gpus * len(cluster.regions))}
    names = sorted({outcome.job.institution for outcome in outcomes} - {""})
    if names:
        figures["institutions"] = {
            name: metrics([o for o in outcomes if o.job.institution == name], cluster.region_gpus) for name in names
        }
    return figures


def main(argv: list[str]) -> int:
    """The command; 2 on bad input, said in one line."""
    try:
        arguments = _parse(argv)
        jobs = read_jobs(arguments.jobs)
        regions = tuple(sorted({job.home_region for job in jobs}))
        cluster = Cluster(arguments.nodes, arguments.gpus_per_node, regions)
        outcomes = run(jobs, cluster, arguments.policy, arguments.runtimes)
    except BadInput as error:
        print(f"replay queue: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary(outcomes, cluster)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
