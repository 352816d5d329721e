"""A simulated control plane process: the real engine and the real wire conversion over a store that outlives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from protos.suanli.v1 import regions_pb2
from scheduler.domain.agent import Hello
from scheduler.domain.errors import Unavailable
from scheduler.planning.policy import Policy
from scheduler.service.engine import Engine
from scheduler.service.state import Settings, Turn
from scheduler.wire.agent import command_to_proto, message_from_proto
from tests.simulation.link import Link

if TYPE_CHECKING:
    from tests.simulation.region import Region
    from tests.simulation.world import World

LEADER_TTL_MS = 5_000
SETTINGS = Settings(heartbeat_interval_ms=2_000, lease_ttl_ms=10_000, max_losses=1_000, remembered_requests=50)


class Control:
    """Boots, serves, crashes, and boots again; a crash may fall before a commit or between a commit and its effects."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kernel = world.kernel
        self.engine: Engine | None = None
        self._commit_no = 0
        self.commit_due = False
        self._waiters: list[Callable[[], None]] = []
        self._sessions: dict[str, tuple[int, Link]] = {}
        self._life = 0

    def boot(self) -> None:
        """Lead as soon as the earlier leader's lease has ended."""
        leadership = self.world.store.acquire_leadership(f"control-{self._life}", LEADER_TTL_MS)
        if leadership is None:
            self.kernel.after(500, self.boot)
            return
        stored = self.world.store.load()
        self._life += 1
        self._commit_no = stored.last_commit_no
        engine = Engine(self.kernel, self.world.ids, self.world.codec, Policy(), SETTINGS)
        engine.rebuild(stored, leadership.epoch)
        self.engine = engine
        self._tick(self._life)

    def crash(self) -> None:
        """kill -9: memory, unacknowledged requests and streams are gone."""
        if self.engine is None:
            return
        self.engine = None
        self._waiters.clear()
        self.commit_due = False
        for region_id, (_, link) in list(self._sessions.items()):
            link.cut()
            self.world.regions[region_id].disconnect()
        self._sessions.clear()
        self.kernel.after(self.kernel.between(50, 5_000), self.boot)

    def _tick(self, life: int) -> None:
        if self.engine is None or life != self._life:
            return
        self.engine.tick()
        self.world.store.renew_leadership(self.engine.state.epoch, LEADER_TTL_MS)
        self.changed()
        self.kernel.after(500, lambda: self._tick(life))

    # --- the loop: plan, commit, say --------------------------------------------------------------------------------

    def changed(self, then: Callable[[], None] | None = None) -> None:
        """Something happened; ``then`` is called when it is durable."""
        if then is not None:
            self._waiters.append(then)
        if not self.commit_due:
            self.commit_due = True
            life = self._life
            self.kernel.after(self.kernel.between(0, 5), lambda: self._turn(life))

    def _turn(self, life: int) -> None:
        engine = self.engine
        if engine is None or life != self._life:
            return
        self.commit_due = False
        engine.round()
        if engine.state.round_needed:
            self.changed()
        waiters, self._waiters = self._waiters, []
        turn = engine.take_turn()
        self.world.check_memory(engine)
        faults = self.world.faults
        if turn.batch:
            if self.kernel.chance(faults.crash_in_commit):
                self.crash()
                return
            self._commit_no += 1
            self._commit(engine, turn)
            if self.kernel.chance(faults.crash_in_commit):
                self.crash()
                return
            self.world.check_store()
        for waiter in waiters:
            waiter()
        for region_id, number, command in turn.commands:
            session = self._sessions.get(region_id)
            if session is not None and session[0] == number:
                message = command_to_proto(command, self.world.codec)
                region, link = self.world.regions[region_id], session[1]
                link.send("down", lambda m, r=region, k=link: r.said(k, m), message)

    def _commit(self, engine: Engine, turn: Turn) -> None:
        """Commit; when the store fails without saying whether it did, repeat with the same number."""
        if self.kernel.chance(self.world.faults.store_failure):
            self.world.store.fail_next_commit("before" if self.kernel.chance(0.5) else "after")
        while True:
            try:
                self.world.store.commit(engine.state.epoch, self._commit_no, turn.batch)
                return
            except Unavailable:
                continue

    # --- agents -----------------------------------------------------------------------------------------------------

    def accept(self, region: Region) -> Link | None:
        """An agent dials."""
        if self.engine is None:
            return None
        link = Link(self.kernel, self.world.faults)
        older = self._sessions.get(region.name)
        if older is not None:
            older[1].cut()
        self._sessions[region.name] = (self.engine.open_session(), link)
        return link

    def hung_up(self, region: Region) -> None:
        """The stream of a region has ended; the server may notice only later."""
        session = self._sessions.get(region.name)
        if session is None or self.engine is None:
            return
        life = self._life
        self.kernel.after(self.kernel.between(0, 3_000), lambda: self._closed(life, region.name, session[0]))

    def _closed(self, life: int, region_id: str, number: int) -> None:
        if self.engine is not None and life == self._life:
            self.engine.close_session(region_id, number)
            self.changed()

    def heard_from(self, region: Region, link: Link, message: regions_pb2.ConnectRequest) -> None:
        """Carry an agent's message here, perhaps."""
        link.send("up", lambda m: self._receive(region.name, link, m), message)

    def _receive(self, region_id: str, link: Link, message: regions_pb2.ConnectRequest) -> None:
        session = self._sessions.get(region_id)
        if self.engine is None or session is None or session[1] is not link:
            return
        heard = message_from_proto(message)
        assert heard is not None
        if isinstance(heard, Hello) and self.engine.state.regions[region_id].session == session[0]:
            return  # The API layer takes one Hello per stream.
        self.engine.receive(region_id, session[0], heard)
        if not self.engine.is_listened_to(region_id, session[0]):
            # As the live shell does: an agent that was silent for too long is hung up on, and dials again.
            self.world.regions[region_id].disconnect()
        self.changed()
