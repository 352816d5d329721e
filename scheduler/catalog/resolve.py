"""What the catalogue says of one run of an algorithm."""

from __future__ import annotations

from typing import NamedTuple

from scheduler.domain.resources import Resources


class ResolvedAlgorithm(NamedTuple):
    """An algorithm ready to run.

    ``argv`` is started inside a private copy of ``folder`` (a manifest digest); ``parameters_json`` is canonical JSON with all
    defaults; the rest are the manifest's defaults for a job that does not say otherwise.
    """

    name: str
    version: str
    argv: tuple[str, ...]
    folder: str
    parameters_json: str
    resources: Resources
    replicas: int
    max_runtime_ms: int
