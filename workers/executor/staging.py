"""The folder of one attempt: made before the start, its content stored and cleared away after the end.

Everything here blocks; the executor calls it from threads except where a function says that it is cheap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path

import artifacts
from workers.executor import logfile, ray_job
from workers.executor.folders import PARTS
from workers.executor.types import Launch

_LOG_CHUNK = 1 << 20

Signature = tuple[tuple[str, int, int, int], ...]
"""Path, size, time of change in ns and inode of each file: equal signatures mean equal content."""


@dataclasses.dataclass(frozen=True, slots=True)
class Collected:
    """What an ended attempt left in the artifact store."""

    results: str | None
    checkpoint: str | None
    logs: str | None
    notes: tuple[str, ...]


def furnish(folder: Path, launch: Launch) -> None:
    """Put the small files and links in a new attempt's folder. Cheap; ValueError for a data set's name that is none."""
    if launch.parameters_json is not None:
        Path(folder, "parameters.json").write_text(launch.parameters_json, encoding="utf-8")
    ray_job.furnish(folder, launch)
    if launch.data_dirs:
        os.mkdir(folder / "data")
        for name, target in launch.data_dirs.items():
            if "/" in name or not artifacts.is_safe_path(name):
                raise ValueError(f"{name[:200]!r} is no name for a data set's folder")
            os.symlink(target, folder / "data" / name)


def fill(folder: Path, launch: Launch, store: artifacts.ArtifactStore, cache: artifacts.FileCache | None) -> None:
    """Bring the working folder and the checkpoint of the attempt before; raises ArtifactError or OSError."""
    if launch.workdir_artifact is not None:
        store.fetch_tree(launch.workdir_artifact, folder / "work", cache)
    if launch.checkpoint_artifact is not None:
        store.fetch_tree(launch.checkpoint_artifact, folder / "checkpoint", cache)


def signature(folder: Path) -> Signature:
    """Return what tells one content of a folder from another without reading it."""
    found: list[tuple[str, int, int, int]] = []
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                found.append((path, status.st_size, status.st_mtime_ns, status.st_ino))
        if len(found) > artifacts.MAX_FILES:
            break
    return tuple(sorted(found))


def discard(folder: Path) -> None:
    """Remove an attempt's folder with all that it holds."""
    ray_job.clear(folder)
    shutil.rmtree(folder, ignore_errors=True)


def collect(
    folder: Path,
    launch: Launch,
    store: artifacts.ArtifactStore,
    holes: tuple[tuple[int, int], tuple[int, int]],
    checkpoint: tuple[Signature, str | None],
) -> Collected:
    """Store results, checkpoint and logs; ``checkpoint`` is what was stored last, so as not to store it twice.

    Raises OSError (or what the store's driver raises) when the store cannot be reached; calling again is safe.
    """
    prefix = f"rank-{launch.rank}" if launch.rank else ""
    results = store.put_tree(artifacts.Part(folder / "results", prefix), note="results")
    kept = checkpoint[1]
    notes = results.left_out
    if launch.rank == 0 and signature(folder / "checkpoint") != checkpoint[0]:
        stored = store.put_tree(artifacts.Part(folder / "checkpoint"), note="checkpoint")
        kept = stored.ref
        notes += stored.left_out
    logs = [
        artifacts.Part(_condensed(folder, name, hole), f"{prefix}/{name}" if prefix else name)
        for name, hole in zip(("stdout.log", "stderr.log"), holes, strict=True)
        if (folder / name).exists()
    ]
    return Collected(results.ref, kept, store.put_tree(*logs, note="logs").ref if logs else None, notes)


def _condensed(folder: Path, name: str, hole: tuple[int, int]) -> Path:
    """Return a log without its hole, which would be stored as that many zeros."""
    source = folder / name
    if hole[1] <= hole[0]:
        return source
    target = folder / f"{name}.kept"
    offset = 0
    with target.open("wb") as file:
        while True:
            data, following = logfile.read(str(source), hole, offset, _LOG_CHUNK)
            if not data:
                return target
            file.write(data)
            offset = following


def clear(folder: Path) -> None:
    """Remove all but the logs of an attempt that has been collected."""
    ray_job.clear(folder)
    for name in (*PARTS, "data"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("parameters.json", "stdout.log.kept", "stderr.log.kept"):
        Path(folder, name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.rmdir(folder)
