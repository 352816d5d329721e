"""An artifact store in a folder, as plain as can be."""

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from scheduler.catalog.artifacts import FileEntry


class FolderStore:
    """Blobs as files named by their digests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def _path(self, digest: str) -> Path:
        return self.root / digest.removeprefix("sha256:")

    def put(self, data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self._path(digest).write_bytes(data)
        return digest

    def has(self, digest: str) -> bool:
        return self._path(digest).exists()

    def put_file(self, path: Path, digest: str) -> None:
        data = path.read_bytes()
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise ValueError("the content is not what its digest says")
        self.put(data)

    def open_blob(self, digest: str, offset: int) -> BinaryIO:
        stream = self._path(digest).open("rb")
        stream.seek(offset)
        return stream

    def read_manifest(self, digest: str) -> tuple[FileEntry, ...]:
        try:
            return tuple(FileEntry(*entry) for entry in json.loads(self._path(digest).read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError("no manifest") from error

    def put_folder(self, path: Path) -> str:
        files = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        entries = [(str(p.relative_to(path)), self.put(p.read_bytes()), p.stat().st_size) for p in files]
        return self.put(json.dumps(entries).encode())
