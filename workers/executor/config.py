"""How a node's executor is set up."""

from __future__ import annotations

import dataclasses

import artifacts
from workers.executor.node import NodeOverrides


@dataclasses.dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """Where an executor works and what bounds it.

    ``root`` is a folder of its own on a local file system; ``artifact_url`` is the store shared by the whole region.
    ``sample_interval_ms`` is how often it is looked at what jobs use, ``tell_interval_ms`` how often that is told while
    they run; 0 for ``checkpoint_interval_ms`` turns snapshots off.
    """

    root: str
    artifact_url: str
    sample_interval_ms: int = 300
    tell_interval_ms: int = 5_000
    checkpoint_interval_ms: int = 60_000
    max_live: int = 20_000
    max_events: int = 200_000
    keep_ended: int = 20_000
    """Ended attempts remembered, so that a launch that comes twice does not run twice."""
    keep_logs: int = 1_000
    """Ended attempts whose logs stay on the node."""
    max_result_files: int = artifacts.MAX_FILES
    max_result_bytes: int = artifacts.MAX_BYTES
    cache_bytes: int = 10 * 1024**3
    store_retry_ms: int = 2_000
    pip_arguments: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    """Folders and files that no sandboxed job may see, even below a folder that its pool shows."""
    node: NodeOverrides = dataclasses.field(default_factory=NodeOverrides)
