"""Content-addressed storage of files and folders, shared by the SDK, the control plane and the executors.

Imports nothing of ours (docs/decisions/0003-artifacts-package.md).
"""

from artifacts.store import (
    MAX_BYTES,
    MAX_FILES,
    RENEWED_AFTER_S,
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
from artifacts.sweeping import Blob, Sweeper

__all__ = [
    "MAX_BYTES",
    "MAX_FILES",
    "RENEWED_AFTER_S",
    "ArtifactError",
    "ArtifactStore",
    "Blob",
    "Entry",
    "FileCache",
    "Part",
    "Stored",
    "Sweeper",
    "digest_of",
    "is_safe_path",
    "reference",
]
