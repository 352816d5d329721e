"""Log files that keep their head and their newest part, and the reading of them."""

from __future__ import annotations

import ctypes
import os

BLOCK = 4096
MIN_LIMIT = 64 * 1024
_PUNCH_KEEP_SIZE = 3

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class BoundedLog:
    """Writes one stream. The file appears with the first byte.

    When more than ``limit`` bytes have come, the middle is given back to the file system (a hole is punched), so
    every byte keeps its offset and the disk holds ``limit`` and an eighth of it at most. On a file system that
    cannot do that, the head is kept and the rest dropped.
    """

    __slots__ = ("_dropping", "_fd", "_head", "_tail", "hole", "limit", "path", "total")

    def __init__(self, path: str, limit: int) -> None:
        self.path = path
        self._fd = -1
        self.limit = max(MIN_LIMIT, limit)
        self._head = self.limit // 2 // BLOCK * BLOCK
        self._tail = self.limit - self._head
        self._dropping = False
        self.total = 0
        """Bytes that came in, kept or not."""
        self.hole = (0, 0)
        """First and one past the last offset left out."""

    @property
    def over_limit(self) -> bool:
        """More has come than is kept."""
        return self.total > self.limit

    def write(self, data: bytes) -> bool:
        """Take bytes in; return whether ``hole`` has changed."""
        start = self.total
        self.total += len(data)
        if self._dropping:
            return self._drop_from(start)
        try:
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], start + written)
        except OSError:
            # A full disk must not stop the job that writes, nor the warden that reads.
            self._dropping = True
            return self._drop_from(start)
        if self.total - max(self.hole[1], self._head) > self._tail + max(8 * BLOCK, self.limit // 8):
            return self._punch()
        return False

    def _drop_from(self, start: int) -> bool:
        self.hole = (self.hole[0] if self.hole[1] else start, self.total)
        return True

    def _punch(self) -> bool:
        begin = max(self.hole[1], self._head)
        end = (self.total - self._tail) // BLOCK * BLOCK
        if _fallocate(self._fd, _PUNCH_KEEP_SIZE, begin, end - begin) != 0:
            self._dropping = True
            return False
        self.hole = (self._head, end)
        return True

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str, hole: tuple[int, int], offset: int, limit: int) -> tuple[bytes, int]:
    """Return up to ``limit`` bytes from ``offset`` on and the offset after them.

    A negative offset counts from the end of what has come so far. Where bytes were left out a line says how many, and the
    next offset lies behind them.
    """
    begin, end = hole
    if offset < 0:
        offset = max(0, max(_size(path), end) + offset)
    if begin <= offset < end:
        return f"\n[... {end - offset} bytes left out ...]\n".encode(), end
    if offset < begin < end:
        limit = min(limit, begin - offset)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b"", offset
    try:
        data = os.pread(fd, limit, offset)
    finally:
        os.close(fd)
    return data, offset + len(data)


def _size(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0
