"""An oracle in the place of the runtime predictor: what planning would do if every runtime were known."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from scheduler.planning.runtimes import Accuracy, JobFeatures
from scheduler.simulation.progress import Progress


class Truth(NamedTuple):
    """Implements ``scheduler.service.ports.Prediction``."""

    expected_remaining_ms: int
    p90_ms: int


class Oracle:
    """Implements ``scheduler.service.ports.RuntimePredictor`` on the jobs themselves, which it knows by their names."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._jobs: dict[str, Progress] = {}

    def introduce(self, name: str, progress: Progress) -> None:
        """Make a job known, under a name that no other has."""
        self._jobs[name] = progress

    def forget(self, name: str) -> None:
        """The job has ended."""
        self._jobs.pop(name, None)

    def observe(self, features: JobFeatures, runtime_ms: int) -> None:
        """Learn nothing: there is nothing it does not know."""

    def predict(self, features: JobFeatures, limit_ms: int, elapsed_ms: int) -> Truth:
        """How long the job really goes on."""
        left_ms = self._jobs[features.name].remaining_ms(self._now_ms())
        return Truth(left_ms, left_ms)

    def accuracy(self) -> Accuracy:
        """It does not err."""
        return Accuracy(0, 1000, 0)
