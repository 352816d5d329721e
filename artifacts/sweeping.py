"""What a collector does to a store: look at every blob with its age, and remove one that is old.

Which blobs nobody needs is not known here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from artifacts.store import ArtifactStore, digest_of, reference

PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""The folders of blobs: the first two digits of their digests."""
_DOOMED = "doomed-"
_OWNER = "owner"


class Blob(NamedTuple):
    """A stored blob: its reference, its size in bytes, and when it was stored or renewed last (ms since 1970, the store's clock)."""

    ref: str
    size: int
    modified_ms: int


class Sweeper:
    """Lists and removes blobs of one store. Its methods block. One sweeper at a time, and no more than one for each store."""

    def __init__(self, store: ArtifactStore) -> None:
        self._fs, self._root, self._local = store._fs, store._root, store._local
        self._blob = store._blob

    def blobs(self, prefix: str) -> Iterator[Blob]:
        """The blobs whose digests begin with two hex digits, in any order; files of other names are passed over."""
        folder = f"{self._root}/sha256/{prefix}"
        if self._local:
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
                for one in found:
                    with contextlib.suppress(FileNotFoundError):
                        status = one.stat(follow_symlinks=False)
                        if _is_blob(one.name, prefix):
                            yield Blob(reference(one.name), status.st_size, status.st_mtime_ns // 1_000_000)
            return
        try:
            entries = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return
        for path, info in entries.items():
            name = path.rpartition("/")[2]
            if _is_blob(name, prefix):
                yield Blob(reference(name), int(info["size"]), self._modified_ms(path, info))

    def remove(self, ref: str, before_ms: int) -> bool:
        """Remove a blob that is not younger than ``before_ms``; says whether it did.

        In a local store nothing can be stored again between the look and the removal: the blob is set aside, looked at there,
        and put back if it has been renewed meanwhile. In an object store there are a few milliseconds between the two.
        """
        digest = digest_of(ref)
        path = self._blob(digest)
        if self._local:
            return self._remove_local(path, digest, before_ms)
        try:
            if self._modified_ms(path, self._fs.info(path)) > before_ms:
                return False
            self._fs.rm_file(path)
        except FileNotFoundError:
            return False
        return True

    def _remove_local(self, path: str, digest: str, before_ms: int) -> bool:
        aside = os.path.join(self._root, "tmp", _DOOMED + digest)
        try:
            if os.stat(path).st_mtime_ns // 1_000_000 > before_ms:
                return False
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        if os.stat(aside).st_mtime_ns // 1_000_000 > before_ms:
            os.rename(aside, path)
            return False
        os.unlink(aside)
        return True

    def recover(self) -> None:
        """Put back what an earlier sweeper had set aside when it was killed; it is looked at again like any blob."""
        if not self._local:
            return
        for one in os.scandir(os.path.join(self._root, "tmp")):
            digest = one.name.removeprefix(_DOOMED)
            if one.name.startswith(_DOOMED) and _is_blob(digest, digest[:2]):
                target = self._blob(digest)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.rename(one.path, target)

    def owner(self, claim: str) -> str:
        """Who has claimed this store; ``claim`` does it when nobody has. Two platforms must not sweep one store."""
        path = f"{self._root}/{_OWNER}"
        with contextlib.suppress(FileNotFoundError):
            return bytes(self._fs.cat_file(path)).decode("utf-8", "replace")[:128]
        self._fs.pipe_file(path, claim.encode())
        return bytes(self._fs.cat_file(path)).decode("utf-8", "replace")[:128]

    def _modified_ms(self, path: str, info: Any) -> int:
        found = info.get("LastModified") or info.get("modified") or self._fs.modified(path)
        return int(found.timestamp() * 1000)


def _is_blob(name: str, prefix: str) -> bool:
    return len(name) == 64 and name.startswith(prefix) and all(letter in "0123456789abcdef" for letter in name)
