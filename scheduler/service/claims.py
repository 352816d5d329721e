"""What is kept for waiting jobs because others were stopped for them."""

from __future__ import annotations

from scheduler.planning.types import GroupKey
from scheduler.service.job import Job


class Claims:
    """The waiting jobs for which others were stopped, each until its claim ends."""

    def __init__(self) -> None:
        self.lines: dict[int, GroupKey] = {}
        """By the job's number, the line it waits in."""
        self._end_ms: dict[int, int] = {}

    def add(self, job: Job, until_ms: int) -> None:
        """Keep what is freed for a waiting job by stopping others for it, at most until then."""
        self.lines[job.job_no] = job.group
        self._end_ms[job.job_no] = max(until_ms, self._end_ms.get(job.job_no, 0))

    def drop(self, job_no: int) -> None:
        """The job has started, or waits no more."""
        if self.lines.pop(job_no, None) is not None:
            del self._end_ms[job_no]

    def drop_old(self, now_ms: int) -> None:
        """Those whose time has passed: what they waited for did not come."""
        for job_no in [job_no for job_no, end_ms in self._end_ms.items() if end_ms <= now_ms]:
            self.drop(job_no)
