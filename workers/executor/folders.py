"""The folders attempts run in, used again when an attempt has left nothing in them.

Making and removing half a dozen folders is a large part of what a short job costs, since each is a journalled change of the
file system. An attempt that left its folders as it found them gives them back, and the next one takes them over by renaming.
"""

from __future__ import annotations

import collections
import os
import shutil
from pathlib import Path

from workers.executor import ray_job
from workers.executor.types import AttemptKey

PARTS = ("work", "results", "checkpoint", "tmp", "home")
_MAX_SPARE = 256


class Folders:
    """The attempts' folders below ``root``. Its methods are a few system calls each, and safe to call from any thread."""

    def __init__(self, root: Path) -> None:
        self._attempts = root / "attempts"
        self._spares = root / "spare"
        self._free: collections.deque[str] = collections.deque()
        self._made = 0
        self._mode = 0
        """Of a folder as this process makes it, its umask included."""

    @property
    def attempts(self) -> Path:
        """Where all attempts have their folders."""
        return self._attempts

    def clear(self) -> None:
        """Remove what an earlier executor left, and make room for this one's."""
        self._free.clear()
        ray_job.clear_all(self._attempts)
        for folder in (self._attempts, self._spares):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        pattern = self._spares / "pattern"
        pattern.mkdir()
        self._mode = pattern.lstat().st_mode

    def of(self, key: AttemptKey) -> Path:
        """The attempt's folder, there or not."""
        return self._attempts / f"{key.job_id}@{key.attempt}-{key.rank}"

    def make(self, folder: Path) -> None:
        """Make the folder with its empty parts."""
        try:
            os.rename(self._free.pop(), folder)
        except IndexError:
            os.mkdir(folder)
            for name in PARTS:
                os.mkdir(f"{folder}/{name}")

    def take_back(self, folder: Path, owner: int | None = None) -> bool:
        """Whether the attempt left its folder as it was made; then it is gone. ``owner``: the user id it was given to."""
        try:
            if not self._untouched(str(folder), os.geteuid() if owner is None else owner):
                return False
        except FileNotFoundError:
            return not folder.exists()
        except OSError:
            return False
        if len(self._free) >= _MAX_SPARE:
            shutil.rmtree(folder, ignore_errors=True)
            return True
        if owner is not None:
            for name in PARTS:
                os.chown(f"{folder}/{name}", os.geteuid(), os.getegid(), follow_symlinks=False)
        self._made += 1
        spare = f"{self._spares}/{self._made}"
        os.rename(folder, spare)
        self._free.append(spare)
        return True

    def _untouched(self, folder: str, owner: int) -> bool:
        """Whether the folder holds its parts and nothing else, the parts are empty, and nobody has put something in their place."""
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries}
        if names != set(PARTS):
            return False
        for name in PARTS:
            path = f"{folder}/{name}"
            status = os.lstat(path)
            if status.st_mode != self._mode or status.st_uid != owner:
                return False
            with os.scandir(path) as entries:
                if next(entries, None) is not None:
                    return False
        return True
