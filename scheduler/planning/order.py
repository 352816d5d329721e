"""The order of planning: down the tenant tree by the lowest share, then by rank.

The tree (``Forest``) is kept from round to round and changes with the queue. A round walks it lazily: only the branches it
reaches get a heap, so that its cost does not grow with the tenants that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace
from typing import Any

from sortedcontainers import SortedDict

from scheduler.planning.guarantees import Guarantees
from scheduler.planning.places import Places
from scheduler.planning.shares import Account, Accounts, Path, allowed
from scheduler.planning.types import GroupKey, PendingJob, PendingQueue


class Line:
    """A group of the queue in the course of a round; ``job`` is its first job that is not started yet.

    ``accounts`` are those of its institution, project and user, ``total`` is what one of its jobs asks for, ``places`` where
    it may go.
    """

    __slots__ = ("_jobs", "_tasks_left", "accounts", "job", "key", "places", "total")

    def __init__(
        self, key: GroupKey, jobs: Iterator[PendingJob], accounts: tuple[Account, Account, Account], places: Places
    ) -> None:
        self.key = key
        self.accounts = accounts
        self.places = places
        self.total = key.shape.total
        self._jobs = jobs
        self.job: PendingJob | None = None
        self._tasks_left = 0
        self._go_on()

    @property
    def allowed(self) -> bool:
        """Whether another job is within the hard quotas."""
        return allowed(self.accounts, self.total)

    def started(self) -> None:
        """One task of the first job has been started: go on to the next task or job."""
        self._tasks_left -= 1
        self._go_on()

    def skip(self) -> None:
        """Leave the first job where it is and go on to the next."""
        self._tasks_left = 0
        self._go_on()

    def _go_on(self) -> None:
        """Find the next job with a task to start, unless the present one has more."""
        while self._tasks_left <= 0:
            self.job = next(self._jobs, None)
            if self.job is None:
                return
            self._tasks_left = self.job.tasks


class Branch:
    """A tenant of the tree with those below it, or with its lines when it is the lowest level that is shared fairly.

    ``lines`` maps each line to the (rank, job_no) of its first job.
    """

    __slots__ = ("children", "lines", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.children: dict[str, Branch] = {}
        self.lines: dict[GroupKey, tuple[int, int]] = {}


class Forest:
    """All lines of the queue, as a tree of ``depth`` levels of tenants."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.root = Branch(())
        self.heads: SortedDict[tuple[int, int], GroupKey] = SortedDict()
        """The lines by the (rank, job_no) of their first jobs."""
        self._known: dict[GroupKey, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: GroupKey, mark: tuple[int, int]) -> None:
        """Let a line stand here, with the (rank, job_no) of its first job."""
        self._known[key] = mark
        self._leaf(key).lines[key] = mark

    def head_of(self, key: GroupKey) -> tuple[int, int]:
        """The (rank, job_no) of a line's first job."""
        return self._known[key]

    def see(self, queue: PendingQueue, keys: Iterable[GroupKey] | None) -> list[tuple[GroupKey, bool]]:
        """Take over what has happened to these lines (None: to any); returns those that came (True) or went (False)."""
        if keys is None:
            keys = {**dict.fromkeys(queue.groups()), **self._known}
        moved: list[tuple[GroupKey, bool]] = []
        for key in keys:
            before = self._known.get(key)
            head = queue.head(key) if queue.size(key) else None
            mark = (head.rank, head.job_no) if head else None
            if mark == before:
                continue
            if before is not None and self.heads.get(before) == key:
                del self.heads[before]
            if mark is not None:
                self.heads[mark] = key
                self.add(key, mark)
                if before is None:
                    moved.append((key, True))
            else:
                del self._known[key]
                self._prune(key)
                moved.append((key, False))
        return moved

    def _leaf(self, key: GroupKey) -> Branch:
        branch = self.root
        path = key.path(self.depth)
        for level, name in enumerate(path):
            child = branch.children.get(name)
            if child is None:
                child = branch.children[name] = Branch(path[: level + 1])
            branch = child
        return branch

    def _prune(self, key: GroupKey) -> None:
        trail = [self.root]
        path = key.path(self.depth)
        for name in path:
            trail.append(trail[-1].children[name])
        del trail[-1].lines[key]
        for level in range(self.depth, 0, -1):
            if trail[level].children or trail[level].lines:
                return
            del trail[level - 1].children[path[level - 1]]


class _Walk:
    """A branch a round has reached: a heap of (place, name, branch or walk) or, at a leaf, of (rank, job_no, line)."""

    __slots__ = ("account", "heap", "institution")

    def __init__(self, branch: Branch, account: Account | None, heap: list[tuple[Any, Any, Any]]) -> None:
        self.institution = branch.path[0] if len(branch.path) == 1 else ""
        self.account = account
        self.heap = heap
        heapify(self.heap)


class FairOrder:
    """Yields the line whose first job is next. After each look either ``started`` or ``drop`` must be called."""

    def __init__(
        self,
        forest: Forest,
        accounts: Accounts,
        guarantees: Guarantees,
        begun: Mapping[GroupKey, Line],
        line_of: Callable[[GroupKey], Line],
        worth: Callable[[GroupKey], bool],
    ) -> None:
        self._accounts = accounts
        self._guarantees = guarantees if guarantees else None
        self._begun = begun
        self._line_of = line_of
        self._worth = worth
        self._trail: list[_Walk] = [self._walk(forest.root)]

    def _walk(self, branch: Branch) -> _Walk:
        account = self._accounts.at(branch.path) if branch.path else None
        heap: list[tuple[Any, Any, Any]] = []
        if branch.children:
            borrowed = self._guarantees.borrowed_share if self._guarantees and not branch.path else None
            for name, child in branch.children.items():
                share = self._accounts.at(child.path).share
                heap.append(((borrowed(name), share) if borrowed else share, name, child))
            return _Walk(branch, account, heap)
        for key, mark in branch.lines.items():
            line = self._begun.get(key)
            if line is not None:
                # Its first job was dealt with before the others.
                if line.job is not None:
                    heap.append((line.job.rank, line.job.job_no, line))
            elif self._worth(key):
                heap.append((*mark, key))
        return _Walk(branch, account, heap)

    def next(self) -> Line | None:
        """The line that is next, or None when none is left."""
        trail = self._trail
        while True:
            walk = trail[-1]
            if not walk.heap:
                if len(trail) == 1:
                    return None
                trail.pop()
                heappop(trail[-1].heap)
                continue
            place, name, found = walk.heap[0]
            if isinstance(found, Line):
                return found
            if isinstance(found, _Walk):
                trail.append(found)
            elif isinstance(found, Branch):
                below = self._walk(found)
                walk.heap[0] = (place, name, below)
                trail.append(below)
            elif not self._worth(found):
                # It was when the branch was reached.
                heappop(walk.heap)
            else:
                line = self._line_of(found)
                walk.heap[0] = (place, name, line)
                return line

    def started(self) -> None:
        """A job of the line (or a task) has been started and its tenants charged: find the new order."""
        leaf = self._trail[-1]
        line = leaf.heap[0][2]
        assert isinstance(line, Line)
        if line.job is None:
            heappop(leaf.heap)
        else:
            heapreplace(leaf.heap, (line.job.rank, line.job.job_no, line))
        self._rise()

    def drop(self) -> None:
        """Nothing more of the line starts in this round."""
        heappop(self._trail[-1].heap)
        self._rise()

    def _rise(self) -> None:
        """Put the branches on the way to the line where they now belong, from the lowest up."""
        trail = self._trail
        while len(trail) > 1:
            below = trail.pop()
            above = trail[-1].heap
            if not below.heap:
                heappop(above)
                continue
            assert below.account is not None
            place: Any = below.account.share
            if self._guarantees and below.institution:
                place = (self._guarantees.borrowed_share(below.institution), place)
            if place != above[0][0]:
                heapreplace(above, (place, above[0][1], below))
