"""Output through the lines of a pod's log: to the byte, once, and with a word where some are missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.executor import pod_frames
from workers.executor.pod_frames import Reader, Writer

pieces = st.lists(
    st.tuples(st.sampled_from([pod_frames.STDOUT, pod_frames.STDERR]), st.binary(max_size=60) | st.just(b"x" * 20_000))
)


def framed(output: list[tuple[bytes, bytes]], flush_each: bool) -> list[bytes]:
    writer = Writer()
    text = b""
    for stream, data in output:
        text += writer.output(stream, data)
        if flush_each:
            text += writer.flush()
    return (text + writer.flush()).split(b"\n")[:-1]


def read(lines: list[bytes]) -> tuple[dict[bytes, bytes], int]:
    reader = Reader()
    streams = {pod_frames.STDOUT: b"", pod_frames.STDERR: b""}
    missing = 0
    for line in lines:
        frame, lost = reader.take(b"2026-12-01T00:00:00Z " + line)
        missing += lost
        if frame is not None:
            reader.accept(frame)
            streams[frame.kind.lower()] += frame.data + (b"\n" if frame.kind.islower() else b"")
    return streams, missing


@given(pieces, st.booleans())
def test_what_goes_in_comes_out(output: list[tuple[bytes, bytes]], flush_each: bool) -> None:
    lines = framed(output, flush_each)
    assert all(len(line) < 16_384 for line in lines)
    streams, missing = read(lines)
    assert missing == 0
    for stream, data in streams.items():
        assert data == b"".join(part for one, part in output if one == stream)


@given(pieces, st.data())
def test_lines_that_come_twice_count_once_and_those_that_do_not_come_are_counted(
    output: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    lines = framed(output, True)
    again = data.draw(st.integers(0, len(lines)))
    back = data.draw(st.integers(0, again))
    assert read(lines[:again] + lines[back:]) == read(lines)
    gap = data.draw(st.integers(0, max(0, len(lines) - 1)))
    assert read(lines[:gap] + lines[gap + 1 :])[1] == (1 if gap < len(lines) - 1 else 0)


def test_a_line_that_is_none_of_ours_is_kept() -> None:
    frame, missing = Reader().take(b"2026-12-01T00:00:00Z exec format error")
    assert (frame, missing) == (pod_frames.Frame(pod_frames.STDERR, 0, b"exec format error"), 0)
