"""The shared artifact store, as the control plane uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from artifacts import MAX_BYTES, ArtifactError, ArtifactStore, Entry, Sweeper, digest_of, reference
from scheduler.catalog.artifacts import FileEntry, StoredBlob


class PlatformArtifacts(ArtifactStore):
    """Implements ``scheduler.catalog.artifacts.SweptStore``."""

    def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        return self._has(digest_of(digest))

    def put_file(self, path: Path, digest: str) -> None:
        """Store a local file's content under its digest. ``ValueError`` when it is not that content's."""
        stored = self._put_file(str(path), path.name, MAX_BYTES)
        if reference(stored.sha256) != digest:
            raise ValueError(f"the content of {digest} has another digest")

    def open_blob(self, digest: str, offset: int) -> IO[bytes]:
        """The blob's content from a byte on."""
        if not self.has(digest):
            raise FileNotFoundError(digest)
        stream = self._open(digest_of(digest))
        stream.seek(offset)
        return stream

    def read_manifest(self, digest: str) -> tuple[FileEntry, ...]:
        """The files of a folder, by path."""
        if not self.has(digest):
            raise FileNotFoundError(digest)
        try:
            entries = self.manifest(digest)
        except ArtifactError as error:
            raise ValueError(str(error)) from error
        return tuple(FileEntry(entry.path, reference(entry.sha256), entry.size) for entry in entries)

    def put_folder(self, path: Path) -> str:
        """Store a folder; what Python compiled on the way is left out, so that the digest follows from the sources alone."""
        files = sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        entries: list[Entry] = [
            self._put_file(str(file), file.relative_to(path).as_posix(), MAX_BYTES) for file in files
        ]
        return self.put_manifest(entries)

    def blob_size(self, digest: str) -> int:
        """In bytes. ``FileNotFoundError``."""
        return int(self._fs.size(self._blob(digest_of(digest))))

    def list_blobs(self, prefix: str) -> Iterator[StoredBlob]:
        """Those whose digests begin with two hex digits."""
        return (StoredBlob(*blob) for blob in Sweeper(self).blobs(prefix))

    def remove(self, digest: str, before_ms: int) -> bool:
        """Remove a blob unless it is younger than ``before_ms`` by now; says whether it did."""
        return Sweeper(self).remove(digest, before_ms)

    def recover(self) -> None:
        """Put back what a sweep that was killed had set aside."""
        Sweeper(self).recover()

    def owner(self, claim: str) -> str:
        """Who has claimed the store: ``claim``, if nobody had."""
        return Sweeper(self).owner(claim)
