"""Content-addressed storage of files and folders, shared by the SDK, the control plane and the executors.

Imports nothing of ours (docs/decisions/0003-artifacts-package.md).
"""

from artifacts.store import (
    MAX_BYTES,
    MAX_FILES,
    ArtifactError,
    ArtifactStore,
    Entry,
    FileCache,
    Part,
    Stored,
    digest_of,
    is_safe_path,
    reference,
)

__all__ = [
    "MAX_BYTES",
    "MAX_FILES",
    "ArtifactError",
    "ArtifactStore",
    "Entry",
    "FileCache",
    "Part",
    "Stored",
    "digest_of",
    "is_safe_path",
    "reference",
]
