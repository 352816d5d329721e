"""Suanli: submit analytics and training jobs to compute pools that institutions share.

>>> import suanli
>>> with suanli.Client() as client:
...     job = client.submit(algorithm="irt")
...     print(job.wait().state)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suanli import errors
    from suanli.aio import AsyncClient
    from suanli.client import Client, Job
    from suanli.errors import JobError, RemoteError, SuanliError, WaitTimeout
    from suanli.info import JobInfo
    from suanli.job import AsyncJob
    from suanli.spec import JobOptions
    from suanli.values import LogChunk, LogLine, Usage, UsageRow

# Imported when asked for: the command line and the launcher are in this package too, and most of them need no gRPC.
_HOME = {
    "AsyncClient": "suanli.aio",
    "AsyncJob": "suanli.job",
    "Client": "suanli.client",
    "Job": "suanli.client",
    "JobError": "suanli.errors",
    "JobInfo": "suanli.info",
    "JobOptions": "suanli.spec",
    "LogChunk": "suanli.values",
    "LogLine": "suanli.values",
    "RemoteError": "suanli.errors",
    "SuanliError": "suanli.errors",
    "Usage": "suanli.values",
    "UsageRow": "suanli.values",
    "WaitTimeout": "suanli.errors",
}

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "Job",
    "JobError",
    "JobInfo",
    "JobOptions",
    "LogChunk",
    "LogLine",
    "RemoteError",
    "SuanliError",
    "Usage",
    "UsageRow",
    "WaitTimeout",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("suanli.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'suanli' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
