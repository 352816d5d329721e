"""The order of planning: institutions, in them projects, in them lines of the queue.

At every step the institution with the lowest weighted dominant share is next, in it the project with the lowest, in it the
line whose class is highest and whose first job is oldest. Shares move with every start, so all three levels are heaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace

from scheduler.planning.shares import Account, Accounts
from scheduler.planning.types import GroupKey, PendingJob, Snapshot


class Line:
    """A group of the queue in the course of a round; ``job`` is its first job that is not started yet."""

    __slots__ = ("_jobs", "_tasks_left", "job", "key")

    def __init__(self, key: GroupKey, jobs: Iterator[PendingJob]) -> None:
        self.key = key
        self._jobs = jobs
        self.job: PendingJob | None = None
        self._tasks_left = 0
        self._go_on()

    def started(self) -> None:
        """One task of the first job has been started: go on to the next task or job."""
        self._tasks_left -= 1
        self._go_on()

    def _go_on(self) -> None:
        """Find the next job with a task to start, unless the present one has more."""
        while self._tasks_left <= 0:
            self.job = next(self._jobs, None)
            if self.job is None:
                return
            self._tasks_left = self.job.tasks

    @property
    def rank(self) -> tuple[int, int, int]:
        """Where it stands among the lines of its project; lower is earlier."""
        job = self.job
        assert job is not None
        return (-self.key.priority, job.rank, job.job_no)


class _Project:
    """A project's lines."""

    __slots__ = ("account", "lines", "name")

    def __init__(self, name: str, account: Account, lines: list[Line]) -> None:
        self.name = name
        self.account = account
        self.lines = [(*line.rank, line) for line in lines]
        heapify(self.lines)

    @property
    def key(self) -> tuple[int, str]:
        return (self.account.share, self.name)


class _Institution:
    """An institution's projects."""

    __slots__ = ("account", "name", "projects")

    def __init__(self, name: str, account: Account, projects: list[_Project]) -> None:
        self.name = name
        self.account = account
        self.projects = [(*project.key, project) for project in projects]
        heapify(self.projects)

    @property
    def key(self) -> tuple[int, str]:
        return (self.account.share, self.name)


class FairOrder:
    """Yields the line whose first job is next. After each look either ``started`` or ``drop`` must be called."""

    def __init__(self, lines: list[Line], accounts: Accounts) -> None:
        grouped: dict[str, dict[str, list[Line]]] = {}
        for line in lines:
            if line.job is not None:
                grouped.setdefault(line.key.institution, {}).setdefault(line.key.project, []).append(line)
        institutions = [
            _Institution(
                name,
                accounts.institutions[name],
                [_Project(each, accounts.projects[name, each], lines) for each, lines in projects.items()],
            )
            for name, projects in grouped.items()
        ]
        self._accounts = accounts
        self._heap = [(*institution.key, institution) for institution in institutions]
        heapify(self._heap)

    def next(self) -> Line | None:
        """The line that is next, or None when none is left."""
        return self._heap[0][2].projects[0][2].lines[0][3] if self._heap else None

    def started(self) -> None:
        """The line's first job (or its next task) has been started: charge its tenants and find the new order."""
        institution = self._heap[0][2]
        project = institution.projects[0][2]
        line = project.lines[0][3]
        total = line.key.shape.total
        institution.account.add(total)
        project.account.add(total)
        before = line.job
        line.started()
        if line.job is None:
            self.drop()
            return
        if line.job is not before:
            heapreplace(project.lines, (*line.rank, line))
        heapreplace(institution.projects, (*project.key, project))
        heapreplace(self._heap, (*institution.key, institution))

    def drop(self) -> None:
        """Nothing more of the line starts in this round."""
        institution = self._heap[0][2]
        project = institution.projects[0][2]
        heappop(project.lines)
        if project.lines:
            heapreplace(institution.projects, (*project.key, project))
        else:
            heappop(institution.projects)
        if institution.projects:
            heapreplace(self._heap, (*institution.key, institution))
        else:
            heappop(self._heap)


def lines_of(snapshot: Snapshot) -> list[Line]:
    """One line for each group of the queue."""
    queue = snapshot.queue
    return [Line(key, queue.jobs(key)) for key in queue.groups()]
