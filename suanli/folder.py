"""Working folders: which files go along, and the manifest that names them by content.

A ``.suanliignore`` in the folder leaves files out, in the form of a .gitignore: one pattern a line, ``#`` comments,
``!`` takes back, a leading ``/`` ties to the folder, a trailing ``/`` means folders only, ``*``, ``?``, ``[...]`` and
``**``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from artifacts import is_safe_path, reference
from suanli.errors import FolderError

IGNORE_FILE = ".suanliignore"
MAX_FILES = 20_000
MAX_BYTES = 4 << 30
MAX_IGNORE_BYTES = 64 * 1024
ALWAYS_LEFT_OUT = (
    ".git/",
    ".hg/",
    ".svn/",
    "__pycache__/",
    ".venv/",
    "node_modules/",
    ".ipynb_checkpoints/",
    ".DS_Store",
)
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalBlob:
    """Bytes to be in the artifact store: from a file, or given."""

    digest: str
    """``sha256:`` and 64 hex digits."""
    size: int
    path: Path | None = None
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class PackedFolder:
    """A folder ready to be uploaded. ``blobs`` ends with the manifest's own."""

    manifest: str
    blobs: tuple[LocalBlob, ...]
    files: int
    size: int


def pack(folder: Path) -> PackedFolder:
    """Read a folder. Raises FolderError when it is none, too large, or a file cannot be read."""
    if not folder.is_dir():
        raise FolderError(f"{folder} is not a folder.")
    rules = _rules(folder)
    files: list[tuple[str, Path]] = []
    for name, path in _walk(folder, "", rules):
        files.append((name, path))
        if len(files) > MAX_FILES:
            raise FolderError(
                f"{folder} has more than {MAX_FILES:,} files; leave some out with {IGNORE_FILE}, or name a smaller one."
            )
    return pack_files(files)


def pack_files(files: list[tuple[str, Path]]) -> PackedFolder:
    """Read single files under names that are relative to the working folder."""
    blobs: dict[str, LocalBlob] = {}
    entries = []
    size = 0
    for name, path in sorted(files):
        if not is_safe_path(name) or not name.isprintable():
            raise FolderError(f"{name!r} holds characters that cannot be kept; rename it, or leave it out.")
        blob, executable = _read(path, MAX_BYTES - size)
        size += blob.size
        blobs[blob.digest] = blob
        entries.append(_entry(name, blob, executable))
    return _packed(entries, blobs, size)


def pack_bytes(contents: dict[str, bytes]) -> PackedFolder:
    """Make a folder of contents by name."""
    blobs: dict[str, LocalBlob] = {}
    entries = []
    for name, content in sorted(contents.items()):
        blob = _blob(content)
        blobs[blob.digest] = blob
        entries.append(_entry(name, blob, False))
    return _packed(entries, blobs, sum(map(len, contents.values())))


def _packed(entries: list[dict[str, object]], blobs: dict[str, LocalBlob], size: int) -> PackedFolder:
    # The canonical form of artifacts.store, so that equal folders are one manifest wherever they were packed.
    document = {"files": entries, "version": 1}
    manifest = _blob(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
    return PackedFolder(manifest.digest, (*blobs.values(), manifest), len(entries), size)


def _entry(name: str, blob: LocalBlob, executable: bool) -> dict[str, object]:
    mode = 0o755 if executable else 0o644
    return {"path": name, "sha256": blob.digest.partition(":")[2], "size": blob.size, "mode": mode}


def _blob(content: bytes) -> LocalBlob:
    return LocalBlob(reference(hashlib.sha256(content).hexdigest()), len(content), None, content)


def _read(path: Path, room: int) -> tuple[LocalBlob, bool]:
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FolderError(f"{path} is not a plain file.")
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > room:
                    raise FolderError(
                        f"The working folder is larger than {MAX_BYTES >> 30} GiB; leave files out with {IGNORE_FILE}, "
                        "and register large data as a data set."
                    )
                digest.update(chunk)
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error.strerror}.") from None
    return LocalBlob(reference(digest.hexdigest()), size, path), bool(status.st_mode & 0o100)


Rule = Callable[[str, bool], bool | None]
"""Given a path and whether it is a folder: True leaves it out, False takes it back, None says nothing."""


def _rules(folder: Path) -> list[Rule]:
    lines = list(ALWAYS_LEFT_OUT)
    try:
        with (folder / IGNORE_FILE).open(encoding="utf-8") as file:
            text = file.read(MAX_IGNORE_BYTES + 1)
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"{folder / IGNORE_FILE} cannot be read: {error}.") from None
    if len(text) > MAX_IGNORE_BYTES:
        raise FolderError(f"{folder / IGNORE_FILE} is larger than {MAX_IGNORE_BYTES:,} characters.")
    lines += text.splitlines()
    return [rule for line in lines if (rule := _rule(line)) is not None]


def _rule(line: str) -> Rule | None:
    pattern = line.rstrip()
    if not pattern or pattern.startswith("#"):
        return None
    leave_out = not pattern.startswith("!")
    pattern = pattern.removeprefix("!").removeprefix("\\")
    folders_only = pattern.endswith("/")
    pattern = pattern.rstrip("/")
    tied = "/" in pattern
    try:
        expression = re.compile(("" if tied else "(?:.*/)?") + _regex(pattern.lstrip("/")))
    except re.error:
        raise FolderError(f"{IGNORE_FILE}: {line[:80]!r} is not a pattern.") from None

    def rule(path: str, is_folder: bool) -> bool | None:
        if folders_only and not is_folder:
            return None
        return leave_out if expression.fullmatch(path) else None

    return rule


def _regex(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    found = []
    for token in re.findall(r"\*\*/|/\*\*$|\*\*|\*|\?|\[!?[^\]]+\]|.", pattern):
        if token in parts:
            found.append(parts[token])
        elif len(token) > 2 and token[0] == "[":
            found.append("[^" + token[2:] if token[1] == "!" else token)
        else:
            found.append(re.escape(token))
    return "".join(found)


def _walk(folder: Path, prefix: str, rules: list[Rule]) -> Iterator[tuple[str, Path]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise FolderError(f"{folder} cannot be read: {error.strerror}.") from None
    for entry in entries:
        name = prefix + entry.name
        is_folder = entry.is_dir(follow_symlinks=False)
        verdicts = [verdict for rule in rules if (verdict := rule(name, is_folder)) is not None]
        if verdicts and verdicts[-1]:
            continue
        if is_folder:
            yield from _walk(Path(entry.path), name + "/", rules)
        elif entry.is_file():
            yield name, Path(entry.path)
        # A link to a folder could lead round in a circle; sockets and the like hold nothing to send.
