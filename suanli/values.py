"""What the client gives back beside jobs: log lines, usage, explanations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from protos.suanli.v1 import jobs_pb2, usage_pb2

STREAMS = {jobs_pb2.LOG_STREAM_STDOUT: "stdout", jobs_pb2.LOG_STREAM_STDERR: "stderr"}
MAX_LINE = 64 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of a log, as they came."""

    stream: str
    """"stdout" or "stderr"."""
    offset: int
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a log, without its end."""

    stream: str
    """"stdout" or "stderr"."""
    text: str

    def __str__(self) -> str:
        return self.text


class Lines:
    """Cuts chunks into lines, stream by stream. A line over 64 KiB comes in parts."""

    def __init__(self) -> None:
        self._rest: dict[str, bytes] = {}

    def add(self, chunk: LogChunk) -> Iterator[LogLine]:
        """Yield the lines that this chunk completes."""
        *whole, rest = (self._rest.get(chunk.stream, b"") + chunk.data).split(b"\n")
        while len(rest) > MAX_LINE:
            whole.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._rest[chunk.stream] = rest
        for line in whole:
            yield LogLine(chunk.stream, line.decode("utf-8", "replace").removesuffix("\r"))

    def end(self) -> Iterator[LogLine]:
        """Yield what has no line end."""
        for stream, rest in self._rest.items():
            if rest:
                yield LogLine(stream, rest.decode("utf-8", "replace"))


@dataclasses.dataclass(frozen=True, slots=True)
class UsageRow:
    """Allocated amounts × time, exact. ``key`` has the value of each dimension asked for, by name."""

    key: dict[str, str]
    cpu_milli_ms: int
    memory_mib_ms: int
    gpu_milli_ms: int
    segments: int
    attempts: int


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Sums over the ledger. ``as_of_ms`` is the instant up to which running jobs were counted; 0: they were not."""

    rows: tuple[UsageRow, ...]
    total: UsageRow
    ledger_sequence: int
    as_of_ms: int


def usage_of(response: usage_pb2.GetUsageResponse, by: tuple[str, ...]) -> Usage:
    """Read the contract's message."""

    def row(one: usage_pb2.UsageRow, names: tuple[str, ...]) -> UsageRow:
        return UsageRow(
            dict(zip(names, one.key, strict=False)),
            int(one.cpu_milli_ms or 0),
            int(one.memory_mib_ms or 0),
            int(one.gpu_milli_ms or 0),
            one.segments,
            one.attempts,
        )

    rows = tuple(row(one, by) for one in response.rows)
    return Usage(rows, row(response.total, ()), response.ledger_sequence, response.as_of_ms)
