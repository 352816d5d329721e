"""What is tried: a policy, and changes of the fleet and of the load, made to a history."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from scheduler.domain.agent import NodeReport
from scheduler.domain.errors import InvalidArgument
from scheduler.planning import policy_document
from scheduler.planning.policy import PRESETS, Policy
from scheduler.simulation.tables import History, PastJob
from scheduler.simulation.workload import DAY_MS, Scenario, SimJob

MAX_ADDED = 100_000
CURRENT = "current"
MAX_LABEL = 36
"""Changes that take more words are called changes."""
MAX_POLICY_BYTES = 1 << 20
_FINISHED = "SUCCEEDED"


@dataclass(frozen=True, slots=True)
class Changes:
    """What is different. ``add`` and ``remove``: (region, pool, nodes); ``regions``: (new region, region it is a copy of);
    ``load_milli``: 1000 times the factor by which there are more jobs."""

    add: tuple[tuple[str, str, int], ...] = ()
    remove: tuple[tuple[str, str, int], ...] = ()
    regions: tuple[tuple[str, str], ...] = ()
    load_milli: int = 1000

    def __bool__(self) -> bool:
        return self != Changes()

    def __str__(self) -> str:
        words = [f"+{count} {region}/{pool}" for region, pool, count in self.add]
        words += [f"−{count} {region}/{pool}" for region, pool, count in self.remove]
        words += [f"region {new} like {old}" for new, old in self.regions]
        words += [f"load × {self.load_milli / 1000:g}"] if self.load_milli != 1000 else []
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to simulate. ``label`` is for people, unique among the variants."""

    label: str
    policy: Policy
    changes: Changes = Changes()


def variants(policies: Sequence[str], changes: Changes, current: Path | None = None) -> list[Variant]:
    """What to simulate: first the baseline, which is the first policy on all as it was; then every other policy, or, when
    there are changes, every policy with the changes.

    ``current`` is the file of the policy that was in force, which goes by the name "current" and is the default; without
    it the preset ``suanli`` is. Raises ``InvalidArgument`` for a policy that is none.
    """
    texts = policies or (CURRENT if current else policy_document.DEFAULT_PRESET,)
    named = [(text, policy_named(text, current)) for text in dict.fromkeys(texts)]
    found = [Variant(_label(named[0][0]), named[0][1])]
    for text, policy in named if changes else named[1:]:
        words = str(changes)
        what = (f": {words}" if len(words) <= MAX_LABEL else ", changed") if changes else ""
        found.append(Variant(_label(text) + what, policy, changes))
    labels = [each.label for each in found]
    return [
        replace(each, label=f"{each.label} ({number})") if labels.index(each.label) < number - 1 else each
        for number, each in enumerate(found, 1)
    ]


def _label(text: str) -> str:
    return text if text in PRESETS or text == CURRENT else Path(text).stem


def policy_named(text: str, current: Path | None = None) -> Policy:
    """The preset of this name, the ``current`` policy, or that in the YAML file of this name. Raises ``InvalidArgument``."""
    if text in PRESETS:
        return PRESETS[text]
    if text == CURRENT and current is None:
        raise InvalidArgument("The history does not say which policy was in force.", field="policy")
    path = current if text == CURRENT and current else Path(text)
    if not path.is_file():
        raise InvalidArgument(
            f"{text!r} is neither a preset ({', '.join(PRESETS)}) nor a file with a policy.", field="policy"
        )
    with path.open("rb") as stream:
        content = stream.read(MAX_POLICY_BYTES + 1)
    if len(content) > MAX_POLICY_BYTES:
        raise InvalidArgument(f"{text}: is longer than {MAX_POLICY_BYTES} bytes.", field="policy")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{text}: is no YAML document: {' '.join(str(error).split())}", field="policy") from error
    if not isinstance(document, dict):
        raise InvalidArgument(f"{text}: is no YAML mapping.", field="policy")
    return policy_document.parse(document)


def scenario(history: History, variant: Variant) -> tuple[Scenario, list[PastJob | None]]:
    """What the simulation is given, and for each of its jobs the past job it stands for (None: added load)."""
    jobs: list[SimJob] = []
    origins: list[PastJob | None] = []
    for past, submit_ms, copied in _loaded(history, variant.changes.load_milli):
        jobs.append(_job(past, max(history.from_ms, submit_ms), variant.policy))
        origins.append(None if copied else past)
    return Scenario(jobs, fleet(history, variant.changes), history.tenants), origins


def ran(job: PastJob) -> bool:
    """Whether its run time is known: it held something. How long a job would have run that never did, nobody knows."""
    return job.runtime_ms > 0


def fleet(history: History, changes: Changes) -> Mapping[str, Sequence[NodeReport]]:
    """The nodes of each region. Raises ``InvalidArgument`` for changes that cannot be made."""
    regions = {name: list(nodes) for name, nodes in history.regions.items()}
    for new, old in changes.regions:
        if old not in history.regions:
            raise InvalidArgument(f"There is no region {old!r} to copy.", field="add_region")
        if new in regions:
            raise InvalidArgument(f"There is a region {new!r} already.", field="add_region")
        regions[new] = list(history.regions[old])
    for region, pool, count in changes.remove:
        found = _nodes(regions, region, pool, "remove_nodes")
        if count > len(found):
            raise InvalidArgument(f"{region}/{pool} has {len(found)} nodes, not {count}.", field="remove_nodes")
        gone = {each.node_id for each in found[len(found) - count :]}
        regions[region] = [each for each in regions[region] if each.node_id not in gone]
    for region, pool, count in changes.add:
        found = _nodes(regions, region, pool, "add_nodes")
        if count > MAX_ADDED:
            raise InvalidArgument(f"{count} nodes are more than {MAX_ADDED}.", field="add_nodes")
        taken = {each.node_id for each in regions[region]}
        names = (name for number in itertools.count(1) if (name := f"{pool}-added-{number}") not in taken)
        for like, name in zip(itertools.islice(itertools.cycle(found), count), names, strict=False):
            regions[region].append(replace(like, node_id=name, name=name))
    if not any(regions.values()):
        raise InvalidArgument("No node is left.", field="remove_nodes")
    return regions


def _nodes(regions: Mapping[str, Sequence[NodeReport]], region: str, pool: str, field: str) -> list[NodeReport]:
    found = [each for each in regions.get(region, ()) if each.pool == pool]
    if not found:
        raise InvalidArgument(f"There is no node of a pool {region}/{pool}.", field=field)
    return found


def _loaded(history: History, load_milli: int) -> list[tuple[PastJob, int, bool]]:
    """The jobs that ran, with their instants of submission, thinned out or multiplied evenly; True: a copy.

    A copy comes a day later for each time the job is copied, at the same hour (in a window of less than two days: a part
    of it later), and from the window's end it goes on at its beginning.
    """
    window_ms = history.to_ms - history.from_ms
    step_ms = DAY_MS if window_ms >= 2 * DAY_MS else window_ms * 382 // 1000
    found = []
    past = [job for job in history.jobs if ran(job)]
    past.sort(key=lambda job: (job.eligible_ms, job.job_id))
    for number, job in enumerate(past):
        times = (number + 1) * load_milli // 1000 - number * load_milli // 1000
        since_ms = max(0, job.eligible_ms - history.from_ms)
        for copy in range(times):
            later_ms = (since_ms + copy * step_ms) % window_ms if copy else since_ms
            found.append((job, history.from_ms + later_ms, copy > 0))
    found.sort(key=lambda each: each[1])
    return found


def _job(past: PastJob, submit_ms: int, policy: Policy) -> SimJob:
    # It ran on one type; the simulation divides by the speed of the type it gets.
    runtime_ms = past.runtime_ms * policy.speed_milli.get(past.ran_on, 1000) // 1000
    # A limit holds for an attempt; here all attempts of the past are one.
    limit_ms = max(past.limit_ms, runtime_ms) if past.attempts > 1 else past.limit_ms
    return SimJob(
        submit_ms,
        past.institution,
        past.shape,
        runtime_ms,
        name=past.name,
        project=past.project,
        user=past.user,
        limit_ms=limit_ms,
        priority=past.priority,
        preemptible=past.preemptible,
        grace_ms=past.grace_ms,
        restart_cost_ms=0 if past.checkpoints else runtime_ms,
        succeeds=past.state == _FINISHED,
    )
