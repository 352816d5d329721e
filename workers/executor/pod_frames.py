"""The lines in which a pod's first process hands on a job's output, so that it comes out to the byte as it went in.

Kubernetes mixes both streams of a container, keeps whole lines only, and after a lost connection gives some of them twice or
(when the node has thrown an old file away) not at all. So each line is ``<kind><number> <bytes>``: the kind says which stream
it is of and whether a newline follows, the numbers go up by one.

The standard library alone: this runs in the pod too.
"""

from __future__ import annotations

import dataclasses

STDOUT, STDOUT_PART = b"o", b"O"
STDERR, STDERR_PART = b"e", b"E"
"""Output that ended in a newline, and output that did not."""
STARTED = b"s"
"""The command runs."""
FAILED = b"f"
"""The command cannot be run; the text says why."""
TOLD = b"t"
"""The stop file was seen, with this signal's number."""
USED = b"u"
"""The last: CPU time in ms and largest resident set in KiB, of all processes that were waited for."""
_KINDS = frozenset((STDOUT, STDOUT_PART, STDERR, STDERR_PART, STARTED, FAILED, TOLD, USED))
LONGEST = 8192
"""Bytes of output in a line. Container runtimes break lines above 16 KiB."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One line."""

    kind: bytes
    number: int
    data: bytes


class Writer:
    """Turns output into lines; keeps what has not seen its newline yet until ``flush``."""

    def __init__(self) -> None:
        self._number = 0
        self._rest = {STDOUT: b"", STDERR: b""}

    def line(self, kind: bytes, data: bytes) -> bytes:
        """Return one line."""
        self._number += 1
        return b"%s%d %s\n" % (kind, self._number, data)

    def output(self, stream: bytes, data: bytes) -> bytes:
        """Return the lines for more output of STDOUT or STDERR."""
        *lines, rest = (self._rest[stream] + data).split(b"\n")
        made = [self._long(stream, line) for line in lines]
        cut = len(rest) - len(rest) % LONGEST
        made += [self.line(stream.upper(), rest[at : at + LONGEST]) for at in range(0, cut, LONGEST)]
        self._rest[stream] = rest[cut:]
        return b"".join(made)

    def _long(self, stream: bytes, line: bytes) -> bytes:
        made = []
        while len(line) > LONGEST:
            made.append(self.line(stream.upper(), line[:LONGEST]))
            line = line[LONGEST:]
        return b"".join(made) + self.line(stream, line)

    def flush(self) -> bytes:
        """Return lines for what waits for its newline."""
        made = b""
        for stream, rest in self._rest.items():
            if rest:
                made += self.line(stream.upper(), rest)
                self._rest[stream] = b""
        return made


class Reader:
    """Takes lines as Kubernetes gives them, each behind a time stamp, and gives every frame once."""

    def __init__(self) -> None:
        self.last = 0
        """Number of the newest frame given."""

    def take(self, line: bytes) -> tuple[Frame | None, int]:
        """Return the frame in a line and how many before it are missing; None: it was given before.

        A line that is not of ours (the container never came as far) becomes one of STDERR with the number 0.
        """
        content = line.partition(b" ")[2]
        head, _, data = content.partition(b" ")
        if head[:1] not in _KINDS or not head[1:].isdigit():
            return Frame(STDERR, 0, content), 0
        number = int(head[1:])
        if number <= self.last:
            return None, 0
        missing = number - self.last - 1
        return Frame(head[:1], number, data), missing

    def accept(self, frame: Frame) -> None:
        """The frame has been dealt with."""
        self.last = max(self.last, frame.number)
