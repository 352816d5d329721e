"""The artifact store: files by content hash, folders as manifests, on a local folder or an object store.

Layout below the store's URL: ``sha256/ab/abcdef...`` holds the bytes whose SHA-256 that is. A folder is a *manifest*,
canonical JSON ``{"files":[{"mode":420,"path":"a/b","sha256":"...","size":3}],"version":1}`` with paths in order, and is
itself a blob. A reference is ``sha256:<64 hex digits>``. Equal content is stored once.

Whoever stores what is there already renews its age (``RENEWED_AFTER_S``), so that a collector, which removes only what is old,
never removes what somebody is about to refer to. What removes blobs is ``artifacts.sweeping``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

MAX_FILES = 100_000
MAX_BYTES = 64 * 1024**3
MAX_MANIFEST_BYTES = 64 * 1024**2
RENEWED_AFTER_S = 3_600
"""A blob that is stored again is made young again when it is older than this; a collector must be far more patient."""
_CHUNK = 1 << 20
_REF = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactError(Exception):
    """An artifact is missing, damaged or not acceptable; the text is a sentence for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One file of a manifest: path relative to the folder, with ``/``; size in bytes; mode 0o644 or 0o755."""

    path: str
    sha256: str
    size: int
    mode: int


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What ``put_tree`` has stored. ``left_out`` holds sentences about files that were not taken (20 at most)."""

    ref: str | None
    """None when there was no file to store."""
    files: int
    size: int
    left_out: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A local folder, or one file, that becomes a part of a stored tree under ``prefix``."""

    folder: Path
    prefix: str = ""


def reference(digest: str) -> str:
    """Return the reference of a digest of 64 hex digits."""
    return f"sha256:{digest}"


def digest_of(ref: str) -> str:
    """Return the hex digest in a reference; raises ArtifactError when it is not one."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise ArtifactError(f"{ref[:80]!r} is not an artifact reference (sha256: and 64 hex digits)")
    return match[1]


class ArtifactStore:
    """One store. Its methods block: call them from a thread. Safe for use from many threads and processes.

    ``url`` is a local folder or whatever fsspec understands (``s3://bucket/prefix``). ``scratch`` is a local folder for
    copies on their way; it must be on the same file system as a local store for storing to be one rename.
    """

    def __init__(self, url: str, scratch: str | Path | None = None, **options: Any) -> None:
        # Other processes add and remove blobs: what a listing once said must not be believed later.
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        if self._local:
            scratch = Path(self._root, "tmp")
        self._scratch = Path(scratch) if scratch is not None else Path(tempfile.gettempdir(), f"suanli-{os.getuid()}")
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)

    # --- blobs ----------------------------------------------------------------------------------------------------

    def put_bytes(self, content: bytes) -> str:
        """Store bytes and return their reference."""
        digest = hashlib.sha256(content).hexdigest()
        if not self._renewed(digest):
            with self._scratch_file() as (file, path):
                file.write(content)
                self._adopt(file, path, digest)
        return reference(digest)

    def get_bytes(self, ref: str, max_bytes: int) -> bytes:
        """Return verified content; raises ArtifactError when missing, damaged or longer than ``max_bytes``."""
        digest = digest_of(ref)
        with self._open(digest) as source:
            content = source.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ArtifactError(f"artifact {ref} is larger than the {max_bytes} bytes allowed")
        if hashlib.sha256(content).hexdigest() != digest:
            raise ArtifactError(f"artifact {ref} is damaged: its content does not match its name")
        return bytes(content)

    def _blob(self, digest: str) -> str:
        return f"{self._root}/sha256/{digest[:2]}/{digest}"

    def _has(self, digest: str) -> bool:
        return bool(os.path.exists(self._blob(digest)) if self._local else self._fs.exists(self._blob(digest)))

    def _renewed(self, digest: str) -> bool:
        """Whether the blob is there and, by now, young; where it is old and cannot be made young, it must be stored again."""
        path = self._blob(digest)
        try:
            if self._local:
                if time.time() - os.stat(path).st_mtime > RENEWED_AFTER_S:
                    os.utime(path)
                return True
            return bool(time.time() - self._fs.modified(path).timestamp() <= RENEWED_AFTER_S)
        except FileNotFoundError:
            return False

    def _open(self, digest: str) -> IO[bytes]:
        path = self._blob(digest)
        try:
            return open(path, "rb") if self._local else self._fs.open(path, "rb")
        except FileNotFoundError:
            raise ArtifactError(f"artifact sha256:{digest} is not in the store") from None

    def _scratch_file(self) -> _ScratchFile:
        return _ScratchFile(self._scratch)

    def _adopt(self, file: IO[bytes], path: str, digest: str) -> None:
        """Make a complete scratch file the blob ``digest``; durable when this returns."""
        file.flush()
        target = self._blob(digest)
        if not self._local:
            self._fs.put_file(path, target)
            return
        os.fsync(file.fileno())
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(path, target)

    # --- folders --------------------------------------------------------------------------------------------------

    def put_tree(
        self, *parts: Part, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES, note: str = "results"
    ) -> Stored:
        """Store the regular files of folders as one manifest.

        Links and special files are left out, as is what goes over a bound; ``left_out`` says so in sentences that
        begin with ``note``. A link that stays within its folder is stored as the file that it names.
        """
        entries: list[Entry] = []
        left_out: list[str] = []
        size = skipped = 0
        for part in parts:
            base = os.path.realpath(part.folder)
            for path, name, why in _walk(part):
                problem = why
                if problem is None and len(entries) >= max_files:
                    problem = f"there are more than {max_files} files"
                elif problem is None:
                    try:
                        entry = self._put_file(path, name, max_bytes - size, base)
                    except _TooLargeError:
                        problem = f"all files together are larger than {max_bytes} bytes"
                    except _UnusableError as error:
                        problem = str(error)
                if problem is not None:
                    skipped += 1
                    if len(left_out) < 20:
                        left_out.append(f"{note}: {name[:200]!r} was left out: {problem}")
                    continue
                entries.append(entry)
                size += entry.size
        if skipped > len(left_out):
            left_out.append(f"{note}: {skipped - len(left_out)} more files were left out")
        ref = self.put_manifest(entries) if entries else None
        return Stored(ref, len(entries), size, tuple(left_out))

    def put_manifest(self, entries: list[Entry]) -> str:
        """Store the manifest of files that are stored already and return its reference."""
        files = [dataclasses.asdict(entry) for entry in sorted(entries, key=lambda entry: entry.path)]
        content = {"files": files, "version": 1}
        return self.put_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())

    def merge(self, refs: Iterable[str]) -> str:
        """Return one manifest with the files of several; raises ArtifactError when two differ under one path."""
        merged: dict[str, Entry] = {}
        for ref in refs:
            for entry in self.manifest(ref):
                if merged.setdefault(entry.path, entry) != entry:
                    raise ArtifactError(f"two of the folders hold a different file {entry.path[:200]!r}")
        return self.put_manifest(list(merged.values()))

    def _put_file(self, path: str, name: str, room: int, base: str | None = None) -> Entry:
        # O_NOFOLLOW and fstat: what was a plain file a moment ago may have been swapped for something else.
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _UnusableError(error.strerror or str(error)) from None
        with os.fdopen(fd, "rb") as source, self._scratch_file() as (file, scratch):
            status = os.fstat(source.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _UnusableError("it is not a plain file")
            # So may a folder above it, for a link that leads out: where it really was opened tells.
            if base is not None and not _is_below(source.fileno(), base):
                raise _UnusableError("it is not in this folder any more")
            digest, size = _copy(source, file, room)
            if not self._renewed(digest):
                self._adopt(file, scratch, digest)
        return Entry(name, digest, size, 0o755 if status.st_mode & 0o100 else 0o644)

    def manifest(self, ref: str) -> tuple[Entry, ...]:
        """Return the files of a manifest; raises ArtifactError when it is not one or holds an unsafe path."""
        content = self.get_bytes(ref, MAX_MANIFEST_BYTES)
        try:
            document = json.loads(content)
            entries = tuple(
                Entry(str(one["path"]), str(one["sha256"]), int(one["size"]), int(one["mode"]))
                for one in document["files"]
            )
        except (ValueError, KeyError, TypeError):
            raise ArtifactError(f"artifact {ref} is not a manifest of files") from None
        if len(entries) > MAX_FILES:
            raise ArtifactError(f"artifact {ref} names more than {MAX_FILES} files")
        for entry in entries:
            if not is_safe_path(entry.path) or not _DIGEST.fullmatch(entry.sha256):
                raise ArtifactError(f"artifact {ref} holds the unsafe path {entry.path[:200]!r}")
        return entries

    def fetch_tree(self, ref: str, destination: str | Path, cache: FileCache | None = None) -> int:
        """Copy the files of a manifest into a folder and return their size in bytes.

        Every byte is checked against the manifest. Files that exist are replaced. Raises ArtifactError or OSError.
        """
        base = Path(destination)
        base.mkdir(parents=True, exist_ok=True)
        total = 0
        for entry in self.manifest(ref):
            target = base / entry.path
            # A file of the same manifest cannot be a link, but one that stood there before can.
            for parent in list(target.parents)[: len(Path(entry.path).parents) - 1]:
                if parent.is_symlink():
                    raise ArtifactError(f"{entry.path!r} would be written through a link")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise ArtifactError(f"{entry.path!r} is below something that is not a folder") from None
            self._fetch_file(entry, target, cache)
            total += entry.size
        return total

    def _fetch_file(self, entry: Entry, target: Path, cache: FileCache | None) -> None:
        useful = None if self._local else cache
        cached = useful.open(entry.sha256) if useful is not None else None
        # What is damaged in the cache is fetched anew, and replaced there.
        if cached is not None and _verified_copy(cached, target, entry, None):
            return
        if not _verified_copy(self._open(entry.sha256), target, entry, useful):
            raise ArtifactError(f"artifact sha256:{entry.sha256} is damaged: its content does not match its name")


class FileCache:
    """Blobs of a remote store kept on this node, those used longest ago removed first. Copies, never links."""

    def __init__(self, folder: str | Path, max_bytes: int) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)

    def open(self, digest: str) -> IO[bytes] | None:
        """Return a cached blob, or None; the caller verifies the content."""
        path = self._folder / digest
        try:
            file = path.open("rb")
            os.utime(path)
        except FileNotFoundError:
            return None
        return file

    def add(self, digest: str, path: str) -> None:
        """Keep a copy of a local file as blob ``digest`` and make room for it."""
        size = os.stat(path).st_size
        if size > self._max_bytes:
            return
        self._make_room(size)
        with _ScratchFile(self._folder) as (file, scratch):
            with open(path, "rb") as source:
                shutil.copyfileobj(source, file, _CHUNK)
            file.flush()
            os.replace(scratch, self._folder / digest)

    def _make_room(self, size: int) -> None:
        found = [(one.stat(), one.path) for one in os.scandir(self._folder) if _DIGEST.fullmatch(one.name)]
        total = sum(status.st_size for status, _ in found) + size
        for status, path in sorted(found, key=lambda one: one[0].st_mtime_ns):
            if total <= self._max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= status.st_size


class _UnusableError(Exception):
    """A file cannot be read or is not one; its folder is stored without it."""


class _TooLargeError(Exception):
    """More bytes came than there is room for."""


class _ScratchFile:
    """A temporary file that is gone afterwards unless it was renamed."""

    def __init__(self, folder: Path) -> None:
        fd, self._path = tempfile.mkstemp(prefix=".suanli-", dir=folder)
        self._file = os.fdopen(fd, "wb")

    def __enter__(self) -> tuple[IO[bytes], str]:
        return self._file, self._path

    def __exit__(self, *_: object) -> None:
        self._file.close()
        Path(self._path).unlink(missing_ok=True)


def _copy(source: IO[bytes], target: IO[bytes], room: int) -> tuple[str, int]:
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > room:
            raise _TooLargeError
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest(), size


def _verified_copy(source: IO[bytes], target: Path, entry: Entry, cache: FileCache | None) -> bool:
    """Put the bytes of ``source`` into ``target`` if they are those of ``entry``; return whether they are."""
    with source, _ScratchFile(target.parent) as (file, scratch):
        try:
            digest, size = _copy(source, file, entry.size)
        except _TooLargeError:
            return False
        if digest != entry.sha256 or size != entry.size:
            return False
        file.flush()
        os.chmod(scratch, 0o755 if entry.mode & 0o100 else 0o644)
        if cache is not None:
            cache.add(entry.sha256, scratch)
        os.replace(scratch, target)
        return True


def is_safe_path(path: str) -> bool:
    """Tell whether a path from a manifest stays inside the folder it is put into, on every system."""
    if not path or len(path) > 4096 or path.startswith("/") or "\\" in path or "\0" in path:
        return False
    return all(part not in {"", ".", ".."} and len(os.fsencode(part)) <= 255 for part in path.split("/"))


def _is_below(fd: int, base: str) -> bool:
    """Whether a descriptor is of ``base`` or of something in it; True on systems that do not tell."""
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return True
    return path == base or path.startswith(base + os.sep)


def _walk(part: Part) -> Iterator[tuple[str, str, str | None]]:
    """Yield (path, name in the manifest, why it is left out or None) for all that is not a folder, in order."""
    base = os.path.realpath(part.folder)
    if os.path.isfile(base):
        yield base, part.prefix, None
        return
    folders = [base] if os.path.isdir(base) else []
    while folders:
        folder = folders.pop()
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield folder, os.path.relpath(folder, base), error.strerror or str(error)
            continue
        for entry in found:
            name = os.path.join(part.prefix, os.path.relpath(entry.path, base))
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                inside = target.startswith(base + os.sep) and os.path.isfile(target)
                yield target, name, None if inside else "it is a link to something that is not a file of this folder"
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                yield entry.path, name, "it is not a plain file"
            elif not is_safe_path(name) or not name.isprintable():
                yield entry.path, ascii(name), "its name holds characters that cannot be kept"
            else:
                yield entry.path, name, None
