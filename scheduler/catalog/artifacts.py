"""The artifact store, as the control plane needs it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple, Protocol


class FileEntry(NamedTuple):
    """One file of a stored folder; ``path`` is relative, with slashes."""

    path: str
    digest: str
    size_bytes: int


class StoredBlob(NamedTuple):
    """A blob with its age: when it was stored, or stored again, last."""

    digest: str
    size_bytes: int
    modified_ms: int


class ArtifactStore(Protocol):
    """Blobs and folders by content hash ("sha256:<64 hex>"). Calls block; they may come from several threads at once.

    A folder is a manifest: a blob that lists files. Raises ``FileNotFoundError`` for an unknown digest, ``ValueError`` for a
    manifest that is none or content that is not what its digest says, ``OSError`` when the storage is away.
    """

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        ...

    def put_file(self, path: Path, digest: str) -> None:
        """Store a local file's content under its digest, which is checked. At once or not at all."""
        ...

    def open_blob(self, digest: str, offset: int) -> IO[bytes]:
        """The blob's content from a byte on."""
        ...

    def read_manifest(self, digest: str) -> tuple[FileEntry, ...]:
        """The files of a folder, by path."""
        ...

    def put_folder(self, path: Path) -> str:
        """Store a folder with all its files; returns the manifest's digest, the same for the same content."""
        ...


class SweptStore(ArtifactStore, Protocol):
    """A store that blobs can be removed from."""

    def blob_size(self, digest: str) -> int:
        """In bytes."""
        ...

    def list_blobs(self, prefix: str) -> Iterable[StoredBlob]:
        """Those whose digests begin with two hex digits."""
        ...

    def remove(self, digest: str, before_ms: int) -> bool:
        """Remove a blob unless it is younger than ``before_ms`` by now; says whether it did."""
        ...

    def recover(self) -> None:
        """Make good what a sweep that was killed has left half done."""
        ...

    def owner(self, claim: str) -> str:
        """Who has claimed the store: ``claim``, if nobody had."""
        ...
