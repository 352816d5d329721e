"""Bounded logs: what is kept, where it stands, and how it is read."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.executor import logfile


def read_all(path: str, hole: tuple[int, int], step: int) -> bytes:
    text, offset = b"", 0
    while True:
        data, following = logfile.read(path, hole, offset, step)
        if not data:
            return text
        assert following > offset
        text, offset = text + data, following


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 65_536), max_size=40), step=st.integers(1000, 100_000))
def test_head_and_newest_part_are_kept_at_their_offsets(tmp_path_factory: object, sizes: list[int], step: int) -> None:
    path = str(Path(tmp_path_factory.mktemp("log"), "x"))  # type: ignore[attr-defined]
    log = logfile.BoundedLog(path, 128 * 1024)
    written = bytearray()
    for number, size in enumerate(sizes):
        piece = bytes([1 + number % 255]) * size
        written += piece
        log.write(piece)
    log.close()
    begin, end = log.hole
    assert log.total == len(written)
    marker = f"\n[... {end - begin} bytes left out ...]\n".encode() if end > begin else b""
    assert read_all(path, log.hole, step) == bytes(written[:begin]) + marker + bytes(written[end:])
    kept = len(written) - (end - begin)
    assert kept == len(written) if len(written) <= log.limit else kept >= log.limit - logfile.BLOCK
    assert kept <= log.limit * 9 // 8 + 8 * logfile.BLOCK + 65_536


def test_a_disk_that_is_full_costs_output_and_nothing_else() -> None:
    log = logfile.BoundedLog("/dev/full", 1 << 20)
    assert log.write(b"x" * 100)
    assert log.hole == (0, 100)
    assert log.write(b"y" * 10)
    log.close()
    assert logfile.read("/dev/full", log.hole, 0, 10) == (b"\n[... 110 bytes left out ...]\n", 110)


def test_a_log_without_output_has_no_file(tmp_path: Path) -> None:
    log = logfile.BoundedLog(str(tmp_path / "x"), 1)
    log.close()
    assert logfile.read(str(tmp_path / "x"), (0, 0), 0, 10) == (b"", 0)
