"""Group commit: everything that happened since the last transaction goes into the next one, and is said when it is durable."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor

from scheduler.domain.errors import Unavailable
from scheduler.service.engine import Engine
from scheduler.service.ports import CommitBatch, Store, records_in
from scheduler.service.state import Turn

log = logging.getLogger(__name__)
RETRY_S = 0.5
SLOW_ROUND_S = 0.005


class Committer:
    """Runs the loop plan → commit → say, one transaction at a time, in one writer thread."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        writer: Executor,
        last_commit_no: int,
        deliver: Callable[[Turn], None],
        failed: Callable[[BaseException], None],
        leads: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._store = store
        self._commit_no = last_commit_no
        self._deliver = deliver
        self._failed = failed
        self._leads = leads
        """Whether no other process can lead yet, by this process's own monotonic clock."""
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._writer = writer
        self._broken: BaseException | None = None
        self._no_round_before = 0.0

    def changed(self) -> None:
        """Something was journalled, or a round may be needed."""
        self._wake.set()

    async def durable(self) -> None:
        """Wait until everything journalled so far is durable. Raises what broke the committer, if anything has."""
        if self._broken is not None:
            raise self._broken
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        await waiter

    async def run(self) -> None:
        """The loop, until cancelled or broken."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                # Let every handler that is ready add its part first: that is what makes the group.
                await asyncio.sleep(0)
                self._plan()
                await self._turn()
        except asyncio.CancelledError:
            self._break(Unavailable("The control plane is stopping; try again in a moment.", reason="STOPPING"))
            raise
        except BaseException as error:
            log.critical("the commit loop ended: %s", error)
            self._break(error)
            self._failed(error)

    def _break(self, error: BaseException) -> None:
        self._broken = error
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def _plan(self) -> None:
        """One round, unless the last one was so long ago that planning would take more than about half of the time."""
        engine = self._engine
        if not engine.state.round_needed:
            return
        begin = time.perf_counter()
        if begin < self._no_round_before:
            asyncio.get_running_loop().call_later(self._no_round_before - begin, self._wake.set)
            return
        starts = engine.round()
        took = time.perf_counter() - begin
        engine.state.observer.round_ms(took * 1000, starts)
        if took > SLOW_ROUND_S:
            self._no_round_before = begin + 2 * took
        if engine.state.round_needed:
            self._wake.set()

    async def _turn(self) -> None:
        waiters, self._waiters = self._waiters, []
        try:
            turn = self._engine.take_turn()
            # A leader that could not renew its lease may have been deposed without knowing: it commits, if only nothing, before
            # it says anything. Else it would go on giving leases to agents whose jobs another leader moves.
            if turn.batch or ((turn.commands or waiters) and not self._leads()):
                self._commit_no += 1
                await self._commit(turn.batch)
        except BaseException:
            self._waiters = waiters + self._waiters
            raise
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._deliver(turn)

    async def _commit(self, batch: CommitBatch) -> None:
        """Write one batch; when the database is away, try again with the same number until it is back."""
        loop = asyncio.get_running_loop()
        begin = time.perf_counter()
        while True:
            try:
                epoch = self._engine.state.epoch
                await loop.run_in_executor(self._writer, self._store.commit, epoch, self._commit_no, batch)
                break
            except Unavailable as error:
                if type(error) is not Unavailable:
                    raise
                log.warning("the store is away, commit %d will be tried again: %s", self._commit_no, error)
                await asyncio.sleep(RETRY_S)
        rows = sum(len(records) for _, records in records_in(batch))
        self._engine.state.observer.commit_ms((time.perf_counter() - begin) * 1000, rows)
