"""One attempt as the agent core sees it: its ranks, why it is being stopped, and what is reported when all have ended.

Which outcome an attempt gets (``verdict``):

1. every rank exited with code 0: SUCCEEDED, even when a stop had been asked for;
2. a stop was asked for before any rank had failed by itself: the outcome asked for;
3. a node was lost: NODE_LOST, also when another rank failed first (the loss is seen late, its victims at once);
4. a rank ran out of memory: OUT_OF_MEMORY, for the same reason;
5. else the outcome of the rank that failed first.
"""

from __future__ import annotations

import enum
import json
import signal
from dataclasses import asdict, dataclass, field
from typing import Any

from workers.core_types import AttemptName, AttemptRecord, Outcome
from workers.core_usage import NOTHING_USED, Used, together, used_of
from workers.executor import types as ex

MESSAGE_LIMIT = 2_000
STOP_NOT_TIMED = 1 << 62
"""``stop_by_mono_ms`` of an attempt that an earlier start of the agent had told to stop: clocks of two starts differ."""

_OUTCOMES = {
    ex.ExitReason.SIGNALLED: Outcome.FAILED,
    ex.ExitReason.OUT_OF_MEMORY: Outcome.OUT_OF_MEMORY,
    ex.ExitReason.OUT_OF_DISK: Outcome.FAILED,
    ex.ExitReason.TIMED_OUT: Outcome.TIMED_OUT,
    ex.ExitReason.STOPPED: Outcome.UNSPECIFIED,
    ex.ExitReason.SPAWN_FAILED: Outcome.SPAWN_FAILED,
    ex.ExitReason.ENVIRONMENT_FAILED: Outcome.ENVIRONMENT_FAILED,
    ex.ExitReason.LOST: Outcome.NODE_LOST,
}


class RankState(enum.IntEnum):
    """Where a rank stands: not given to its executor, given, its process runs, over."""

    WAITING = 0
    LAUNCHED = 1
    STARTED = 2
    ENDED = 3


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How a rank ended. ``outcome`` is UNSPECIFIED for one that was told to stop; ``order`` counts the ends of the attempt."""

    outcome: int
    order: int
    ended_ms: int
    exit_code: int = 0
    exit_signal: int = 0
    message: str = ""
    cpu_ms: int = 0
    peak_memory_mib: int = 0
    results: str = ""
    checkpoint: str = ""
    lost_node: str = ""
    logs: str = ""
    gpu_used_milli_ms: int = 0
    gpu_peak_memory_mib: int = 0


@dataclass(slots=True)
class Rank:
    """One process of the attempt. ``stop_again_mono_ms`` is when an unanswered stop is repeated.

    ``used`` is what has been heard of while it runs; not kept in the spool: its executor says it again.
    """

    node_id: str
    state: RankState = RankState.WAITING
    started_ms: int = 0
    end: RankEnd | None = None
    stop_again_mono_ms: int = 0
    used: Used = NOTHING_USED


@dataclass(frozen=True, slots=True)
class Asked:
    """A stop that was asked for from outside the attempt, and what is to be reported then."""

    outcome: int
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is reported of an attempt that is over."""

    outcome: Outcome
    at_ms: int
    message: str = ""
    exit_code: int = 0
    exit_signal: int = 0
    used: Used = NOTHING_USED
    results: str = ""
    checkpoint: str = ""
    lost_node_id: str = ""
    logs: str = ""


@dataclass(slots=True, eq=False)
class Attempt:
    """A launch that was accepted and has not ended.

    ``launches`` wait here while a gang's port is being looked for. ``stopping`` is set once its ranks have been told to end,
    for whatever reason. ``checkpoint`` is the newest known, ``checkpoint_seq`` the event that reported the last one, 0 when
    that is acknowledged, ``checkpoint_told`` what it said.
    """

    job_id: str
    attempt: int
    lease_epoch: int
    launch_seq: int
    made_ms: int
    grace_ms: int
    move: bool
    ranks: list[Rank]
    asked: Asked | None = None
    stopping: bool = False
    stop_message: str = ""
    stop_by_mono_ms: int = 0
    stop_grace_ms: int = 0
    checkpoint: str = ""
    checkpoint_told: str = ""
    checkpoint_seq: int = 0
    launches: list[ex.Launch] = field(default_factory=list)
    port_by_mono_ms: int = 0
    merging: bool = False
    started_count: int = 0
    ended_count: int = 0

    @property
    def name(self) -> AttemptName:
        """What names it in the region."""
        return (self.job_id, self.attempt)

    def key(self, rank: int) -> ex.AttemptKey:
        """What names one of its ranks to an executor."""
        return ex.AttemptKey(self.job_id, self.attempt, rank)

    @property
    def all_started(self) -> bool:
        """Every rank's process has been started, whether or not it still runs."""
        return self.started_count == len(self.ranks)

    @property
    def all_ended(self) -> bool:
        """Nothing of it runs any more."""
        return self.ended_count == len(self.ranks)

    def start_rank(self, number: int, at_ms: int) -> bool:
        """Note that a rank's process runs; False when that was known."""
        rank = self.ranks[number]
        if rank.started_ms:
            return False
        rank.state = RankState.STARTED
        rank.started_ms = at_ms
        self.started_count += 1
        return True

    def end_rank(self, number: int, end: RankEnd) -> bool:
        """Note a rank's end, once; whether it must end the other ranks too."""
        rank = self.ranks[number]
        rank.end = end
        rank.state = RankState.ENDED
        self.ended_count += 1
        return end.outcome != Outcome.SUCCEEDED

    def used(self) -> Used:
        """What it has used so far, or in all once it is over: of each rank, at least what was heard of while it ran.

        So one whose node was lost has used what it was last known to have.
        """
        ranks = [
            rank.used.at_least(_used_to_the_end(rank.end)) if rank.end is not None else rank.used for rank in self.ranks
        ]
        return together(ranks)

    def result_manifests(self) -> tuple[str, ...]:
        """The results of its ranks, by rank, without repeats."""
        return tuple(dict.fromkeys(rank.end.results for rank in self.ranks if rank.end and rank.end.results))

    def log_manifests(self) -> tuple[str, ...]:
        """The logs of its ranks, by rank, without repeats."""
        return tuple(dict.fromkeys(rank.end.logs for rank in self.ranks if rank.end and rank.end.logs))

    def record(self) -> AttemptRecord:
        """Itself, as kept in the spool. Ranks are kept whole: the executors forget what they have been acknowledged."""
        body: dict[str, Any] = {
            "grace_ms": self.grace_ms,
            "move": self.move,
            "ranks": [
                [rank.node_id, int(rank.state), rank.started_ms, asdict(rank.end) if rank.end else None]
                for rank in self.ranks
            ],
            "asked": [self.asked.outcome, self.asked.message] if self.asked else None,
            "stopping": self.stopping,
            "stop_message": self.stop_message,
            "stop_grace_ms": self.stop_grace_ms,
            "checkpoint": self.checkpoint,
            "checkpoint_told": self.checkpoint_told,
        }
        text = json.dumps(body, separators=(",", ":"))
        return AttemptRecord(self.job_id, self.attempt, self.lease_epoch, self.launch_seq, False, self.made_ms, text)


def attempt_from_record(record: AttemptRecord) -> Attempt:
    """The attempt as it was when ``record`` was made of it; launches that had not been handed on are gone."""
    body = json.loads(record.body)
    ranks = [
        Rank(node_id, RankState(state), started_ms, RankEnd(**end) if end else None)
        for node_id, state, started_ms, end in body["ranks"]
    ]
    return Attempt(
        job_id=record.job_id,
        attempt=record.attempt,
        lease_epoch=record.lease_epoch,
        launch_seq=record.launch_seq,
        made_ms=record.made_ms,
        grace_ms=body["grace_ms"],
        move=body["move"],
        ranks=ranks,
        asked=Asked(*body["asked"]) if body["asked"] else None,
        stopping=body["stopping"],
        stop_message=body["stop_message"],
        stop_grace_ms=body["stop_grace_ms"],
        stop_by_mono_ms=STOP_NOT_TIMED,
        checkpoint=body["checkpoint"],
        checkpoint_told=body["checkpoint_told"],
        started_count=sum(rank.started_ms > 0 for rank in ranks),
        ended_count=sum(rank.end is not None for rank in ranks),
    )


def end_of_exit(exited: ex.Exited, order: int, now_ms: int) -> RankEnd:
    """How a rank ended, from what its executor says. An end in the future (a node's clock runs ahead) is taken as now."""
    number = _signal_number(exited.signal)
    used = used_of(exited.usage)
    if exited.reason is ex.ExitReason.EXITED:
        outcome = Outcome.SUCCEEDED if exited.exit_code == 0 else Outcome.FAILED
    else:
        outcome = _OUTCOMES[exited.reason]
    message = exited.message
    if not message and outcome is Outcome.FAILED:
        message = f"killed by {exited.signal}" if exited.signal else f"exited with code {exited.exit_code}"
    return RankEnd(
        outcome=int(outcome),
        order=order,
        ended_ms=min(exited.ended_ms, now_ms) or now_ms,
        exit_code=exited.exit_code or 0,
        exit_signal=number,
        message=message[:MESSAGE_LIMIT],
        cpu_ms=used.cpu_ms,
        peak_memory_mib=used.peak_memory_mib,
        results=exited.results_manifest or "",
        checkpoint=exited.checkpoint_manifest or "",
        logs=exited.logs_manifest or "",
        gpu_used_milli_ms=used.gpu_used_milli_ms,
        gpu_peak_memory_mib=used.gpu_peak_memory_mib,
    )


def _used_to_the_end(end: RankEnd) -> Used:
    return Used(end.cpu_ms, end.peak_memory_mib, end.gpu_used_milli_ms, end.gpu_peak_memory_mib)


def verdict(attempt: Attempt, results: str = "", logs: str = "", note: str = "") -> Verdict:
    """What to report of an attempt all of whose ranks have ended; ``note`` is added to the message.

    Where ``results`` or ``logs`` is empty, that of the first rank that left any is reported.
    """
    result_manifests, log_manifests = attempt.result_manifests(), attempt.log_manifests()
    ends = [(number, rank.end) for number, rank in enumerate(attempt.ranks) if rank.end is not None]
    common: dict[str, Any] = {
        "at_ms": max(end.ended_ms for _, end in ends),
        "used": attempt.used(),
        "results": results or (result_manifests[0] if result_manifests else ""),
        "logs": logs or (log_manifests[0] if log_manifests else ""),
        "checkpoint": ends[0][1].checkpoint or attempt.checkpoint,
    }
    if all(end.outcome == Outcome.SUCCEEDED for _, end in ends):
        return Verdict(Outcome.SUCCEEDED, message=note, **common)
    if attempt.asked is not None:
        return Verdict(Outcome(attempt.asked.outcome), message=_join(attempt.asked.message, note), **common)
    failed = [(number, end) for number, end in ends if end.outcome not in (Outcome.SUCCEEDED, Outcome.UNSPECIFIED)]
    if not failed:
        # An earlier start of the agent, whose disk was lost since, had it stopped.
        return Verdict(Outcome.NODE_LOST, message=_join("it had been stopped on its node before", note), **common)
    number, first = min(failed, key=lambda item: (_weight(item[1].outcome), item[1].order))
    message = f"rank {number}: {first.message}" if len(ends) > 1 and first.message else first.message
    return Verdict(
        Outcome(first.outcome),
        message=_join(message, note),
        exit_code=first.exit_code,
        exit_signal=first.exit_signal,
        lost_node_id=first.lost_node,
        **common,
    )


def _weight(outcome: int) -> int:
    return {Outcome.NODE_LOST: 0, Outcome.OUT_OF_MEMORY: 1}.get(Outcome(outcome), 2)


def _join(message: str, note: str) -> str:
    return "; ".join(part for part in (message, note) if part)[:MESSAGE_LIMIT]


def _signal_number(name: str | None) -> int:
    if not name:
        return 0
    try:
        return int(signal.Signals[name])
    except KeyError:
        return 0
