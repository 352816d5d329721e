"""What a run of the demonstration has found: plain data that the report is drawn from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Tenant:
    """An institution of the demonstration and the one project in which it works."""

    id: str
    title: str
    project: str
    user: str
    region: str
    """Where its jobs must run."""


@dataclasses.dataclass(frozen=True, slots=True)
class JobRun:
    """One job (or one task of an array) as it ran. Times in ms since 1970; 0: never came to it."""

    id: str
    name: str
    institution: str
    state: str
    message: str
    region: str
    pool: str
    replicas: int
    cpu_milli: int
    memory_mib: int
    submit_ms: int
    grant_ms: int
    start_ms: int
    end_ms: int
    nodes: tuple[str, ...]
    cpu_used_ms: int
    peak_memory_mib: int


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a result beside the published one; ``published`` and ``tolerance`` are None where there is none."""

    label: str
    value: float
    published: float | None = None
    tolerance: float | None = None
    decimals: int = 3

    @property
    def agrees(self) -> bool | None:
        """Whether it is the published one; None when there is none."""
        if self.published is None or self.tolerance is None:
            return None
        return abs(self.value - self.published) <= self.tolerance


@dataclasses.dataclass(frozen=True, slots=True)
class Analysis:
    """A catalogue algorithm's result."""

    job_id: str
    title: str
    question: str
    institution: str
    region: str
    summary: str
    figures: tuple[Figure, ...]
    source: str
    """Where the published figures stand."""
    warnings: tuple[str, ...]
    folder: Path
    """Its files, the plot among them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What was asked of the platform and what it said."""

    asked: str
    code: str
    said: str
    details: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Bill:
    """One institution's use in one region, exactly: milli-units × ms."""

    institution: str
    region: str
    cpu_milli_ms: int
    memory_mib_ms: int
    attempts: int


@dataclasses.dataclass(frozen=True, slots=True)
class Charged:
    """One institution's statement: its total in words, and the file it is in."""

    institution: str
    number: str
    total: str
    file: str


@dataclasses.dataclass(slots=True)
class Findings:
    """All of it."""

    tenants: tuple[Tenant, ...]
    regions: tuple[str, ...]
    version: str
    begin_ms: int
    end_ms: int = 0
    startup_ms: int = 0
    jobs: list[JobRun] = dataclasses.field(default_factory=list)
    analyses: list[Analysis] = dataclasses.field(default_factory=list)
    power: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    function: tuple[str, str] = ("", "")
    """Source of the Python function that ran as a job, and what it returned."""
    refused: Answer | None = None
    why: Answer | None = None
    bills: list[Bill] = dataclasses.field(default_factory=list)
    ledger_records: int = 0
    ledger_agrees: bool = False
    """Whether the bills equal the sum over the ledger's records, to the last unit."""
    statements: list[Charged] = dataclasses.field(default_factory=list)
    verified_records: int = 0
    """Records whose chain and totals were verified and found right."""
    problems: list[str] = dataclasses.field(default_factory=list)

    def to_data(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        data: dict[str, Any] = dataclasses.asdict(self)
        for analysis in data["analyses"]:
            analysis["folder"] = Path(analysis["folder"]).name
        return data
