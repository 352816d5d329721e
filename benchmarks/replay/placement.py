"""Places the pods of a GPU-sharing trace one by one: `python -m benchmarks.replay placement --help`.

Replays the experiment of FGD (Weng et al., USENIX ATC 2023): the cluster starts empty, every pod is placed at once or dropped, and
what counts is how much of the GPUs is allocated when pods for 100 % and 130 % of them have arrived. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.replay import placement_published, placement_suanli
from benchmarks.replay.placement_trace import Trace, TraceError, read_arrivals, read_rank, read_trace

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

POLICIES = ("fgd", "bestfit", "suanli")
MARKS = (100, 130)


class Replay:
    """One policy on one trace; what is the same for all seeds is computed once."""

    def __init__(self, trace: Trace, policy: str) -> None:
        self.trace = trace
        self.policy = policy
        if policy == "suanli":
            self.suanli = placement_suanli.Replay(trace)
        else:
            self.typical = placement_published.typical_pods(trace)
            self.allowed = np.array([trace.allowed(shape) for shape in trace.shapes])
        # The first pod alone, on a cluster of its own: compiles, so that placing can be timed.
        self.place(np.zeros(1, dtype=np.int64), np.arange(len(trace.names)))

    def place(self, arrivals: Ints, rank: Ints) -> Bools:
        """Which of the arriving pods (row numbers) are placed."""
        trace = self.trace
        order = trace.pods[arrivals]
        if self.policy == "suanli":
            # The product breaks ties by the index of the node, so its nodes stand in the order of their rank.
            node_order = np.argsort(rank, kind="stable")
            return self.suanli.place(order, node_order)
        gpus = np.where(np.arange(trace.gpus.max()) < trace.gpus[:, None], 1000, 0)
        free = (trace.cpu_milli.copy(), trace.memory_mib.copy(), gpus, trace.gpus)
        shapes = np.array([shape[:4] for shape in trace.shapes], dtype=np.int64)
        return placement_published.replay(self.policy == "fgd", free, rank, order, shapes, self.allowed, self.typical)


def allocated_at(trace: Trace, arrivals: Ints, placed: Bools) -> dict[str, float | None]:
    """The mean allocation, in % of all GPUs, while the GPUs asked for by then round to each mark; None: never."""
    asked = np.array([shape.gpu_milli * shape.num_gpu for shape in trace.shapes], dtype=np.int64)[trace.pods[arrivals]]
    arrived = np.rint(100 * np.cumsum(asked) / trace.gpu_milli)
    allocated = np.round(100 * np.cumsum(np.where(placed, asked, 0)) / trace.gpu_milli, 2)
    return {
        f"at_{mark}": round(float(allocated[arrived == mark].mean()), 4) if (arrived == mark).any() else None
        for mark in MARKS
    }


def mean_of(per_seed: dict[str, dict[str, float | None]]) -> dict[str, float | None]:
    """The mean over the seeds; None where one of them has no figure."""
    means: dict[str, float | None] = {}
    for mark in MARKS:
        figures = [seed[f"at_{mark}"] for seed in per_seed.values()]
        known = [figure for figure in figures if figure is not None]
        means[f"at_{mark}"] = round(sum(known) / len(known), 4) if len(known) == len(figures) else None
    return means


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"numbers with commas between them, not {text!r}") from None
    return list(dict.fromkeys(seeds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay placement",
        description="Place the pods of a trace one by one and say how much of the GPUs is allocated. Files may be gzipped.",
    )
    parser.add_argument("--nodes", required=True, type=Path, help="sn,cpu_milli,memory_mib,gpu,model")
    parser.add_argument("--pods", required=True, type=Path, help="cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec")
    parser.add_argument(
        "--arrivals", required=True, type=Path, help="a column seed_N a seed: row numbers of pods, from 0"
    )
    parser.add_argument("--node-rank", required=True, type=Path, help="sn and a column seed_N a seed; decides ties")
    parser.add_argument("--seeds", required=True, type=_seeds, help="for example 42,43")
    parser.add_argument("--policy", choices=POLICIES, default="suanli")
    return parser


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """Read everything, then replay seed by seed; raises ``TraceError``."""
    trace = read_trace(arguments.nodes, arguments.pods)
    inputs = {
        seed: (
            read_arrivals(arguments.arrivals, seed, len(trace.pods)),
            read_rank(arguments.node_rank, seed, trace.names),
        )
        for seed in arguments.seeds
    }
    replay = Replay(trace, arguments.policy)
    per_seed: dict[str, dict[str, float | None]] = {}
    pods, seconds = 0, 0.0
    for seed, (arrivals, rank) in inputs.items():
        started = time.perf_counter()
        placed = replay.place(arrivals, rank)
        took = time.perf_counter() - started
        pods, seconds = pods + len(arrivals), seconds + took
        per_seed[str(seed)] = figures = allocated_at(trace, arrivals, placed)
        print(f"seed {seed}: {placed.sum()} of {len(arrivals)} pods placed in {took:.2f} s, {figures}", file=sys.stderr)
    return {
        "policy": arguments.policy,
        "per_seed": per_seed,
        "mean": mean_of(per_seed),
        "placements_per_s": round(pods / seconds),
    }


def main(argv: list[str]) -> int:
    """Exit code 2, with one line that says why, when a file is not of the form it should have."""
    arguments = _parser().parse_args(argv)
    try:
        result = run(arguments)
    except TraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0
