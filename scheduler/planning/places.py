"""Where the jobs of one shape may go, and where they go next."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.spec import Shape
from scheduler.planning.fit import Rank, rank, site_allowed
from scheduler.planning.guarantees import Standing
from scheduler.planning.kernels import Flags, Ints
from scheduler.planning.policy import Policy
from scheduler.planning.scoring import NO_FIT
from scheduler.planning.sites import Ranking, Site

if TYPE_CHECKING:
    from scheduler.planning.board import Board

StandingIn = Callable[[Site], Standing]


class PlacesKey(NamedTuple):
    """All that decides where jobs may go."""

    shape: Shape
    home_region: str
    preemptible: bool


class Places:
    """The sites a shape may use, best first, for institutions of one home region."""

    def __init__(self, board: Board, policy: Policy, key: PlacesKey) -> None:
        self._board = board
        self.key = key
        self.shape = key.shape
        ranked = [
            (rank(site.key, key.shape, key.home_region, policy), site)
            for site in board.sites
            if site_allowed(site.key, key.shape, policy, key.preemptible)
        ]
        ranked.sort(key=lambda each: (each[0], each[1].key))
        self.ranked: list[tuple[Rank, Site]] = ranked
        self._holds: list[tuple[Rank, Site]] = []
        self._holds_as_of = -1
        self._full_as_of = (-1, -1)
        self._known: list[tuple[Rank, Site, Ranking]] = []
        self._forgotten = -1

    @property
    def full(self) -> bool:
        """Whether nothing of the shape fits anywhere for the rest of the round. Nothing is released while it goes on."""
        return self._full_as_of == (self._board.round_no, 0)

    def _rankings(self) -> list[tuple[Rank, Site, Ranking]]:
        """The rankings of its sites, kept as long as none was forgotten."""
        scorer = self._board.scorer
        if self._forgotten != scorer.forgotten:
            self._known = [(how, site, site.ranking(self.shape)) for how, site in self.ranked]
            self._forgotten = scorer.forgotten
        return self._known

    def fits_somewhere(self) -> bool:
        """Whether one replica fits on some site; a quick look before a round."""
        for _, site, ranking in self._rankings():
            if site.online and ranking.best() >= 0:
                return True
        self._full_as_of = (self._board.round_no, 0)
        return False

    def place(self, standing_in: StandingIn | None) -> tuple[Site, tuple[ReplicaPlacement, ...]] | None:
        """Place one job of the shape and take what it needs, or answer None: it fits nowhere it may stand now.

        ``standing_in`` says how the job would stand on a site; None: nothing is guaranteed to anybody.
        """
        if self.full:
            return None
        barred = False
        if standing_in is None and self.shape.replicas == 1:
            return self._place_one()
        best: tuple[object, ...] | None = None
        chosen: tuple[Site, list[int]] | None = None
        for how, site in self.ranked:
            if not site.online:
                continue
            standing = standing_in(site) if standing_in else Standing.OWN
            if not standing.allowed:
                barred = True
                continue
            place = (how.spare_gpus, how.region, standing, how.cost, how.accelerator)
            if best is not None and place > best[:5]:
                if standing_in is None:
                    break
                continue
            found = self._on(site)
            if found is not None:
                score, numbers = found
                offer = (*place, *score)
                if best is None or offer < best:
                    best, chosen = offer, (site, numbers)
        if chosen is None:
            if not barred:
                self._full_as_of = (self._board.round_no, 0)
            return None
        site, numbers = chosen
        return site, (site.place(self.shape, numbers) if self.shape.replicas == 1 else self._fill(site, numbers))

    def _place_one(self) -> tuple[Site, tuple[ReplicaPlacement, ...]] | None:
        """``place`` for the usual case: one replica, and nothing guaranteed to anybody."""
        tier: Rank | None = None
        where: Site | None = None
        number = -1
        least = NO_FIT
        for how, site, ranking in self._rankings():
            if where is not None and how is not tier and how != tier:
                break
            if not site.online:
                continue
            found = ranking.best()
            if found < 0:
                continue
            score = ranking.best_score
            if where is None or score < least or (score == least and site.ids[found] < where.ids[number]):
                tier, least, where, number = how, score, site, found
        if where is None:
            self._full_as_of = (self._board.round_no, 0)
            return None
        return where, where.place(self.shape, (number,))

    def _on(self, site: Site) -> tuple[tuple[object, ...], list[int]] | None:
        """How well the job would stand on a site, to compare sites by, and where: one node, or the nodes its gang may use."""
        ranking = site.ranking(self.shape)
        number = ranking.best()
        if number < 0:
            return None
        score = (ranking.best_score, site.ids[number], site.key)
        if self.shape.replicas == 1:
            return (0, *score), [number]
        nodes = gang_nodes(site, self.shape, site.rooms(self.shape))
        return None if nodes is None else ((nodes[0], *score), nodes[1])

    def _fill(self, site: Site, numbers: list[int]) -> tuple[ReplicaPlacement, ...]:
        """Place a gang on these nodes, which have room for it: each replica where it then stands best."""
        ranking = site.ranking(self.shape)
        outside: Flags = np.ones(len(site.ids), np.bool_)
        outside[numbers] = False
        placed: list[ReplicaPlacement] = []
        for _ in range(self.shape.replicas):
            number = ranking.best_but(outside)
            placed += site.place(self.shape, [number])
        return tuple(placed)

    def usable_when_empty(self) -> list[tuple[Rank, Site]]:
        """The sites whose schedulable nodes could hold the job if nothing else stood on them.

        GPU nodes count for a job without GPUs only when no site without GPUs could.
        """
        if self._holds_as_of != self._board.capacity_version:
            holds = [(how, site) for how, site in self.ranked if site.online and self._holds_empty(site)]
            last_resort = min((how.spare_gpus for how, _ in holds), default=0)
            self._holds = [(how, site) for how, site in holds if how.spare_gpus == last_resort]
            self._holds_as_of = self._board.capacity_version
        return self._holds

    def _holds_empty(self, site: Site) -> bool:
        return gang_nodes(site, self.shape, site.rooms_when_empty(self.shape)) is not None


def gang_nodes(site: Site, shape: Shape, rooms: Ints) -> tuple[int, list[int]] | None:
    """The nodes on which a gang should stand, with the number of domains they are in; None: it has no room.

    ``rooms``: how many replicas each node has room for. With ``shape.pack``: the tightest domain that holds them all; where none
    does and it is not required, the fewest domains, the roomiest first.
    """
    needed = shape.replicas
    rooms = np.minimum(rooms, needed)
    if int(rooms.sum()) < needed:
        return None
    if not shape.pack:
        return 0, [int(number) for number in np.nonzero(rooms)[0]]
    domain_of, count = site.domains(shape.pack)
    room_in = np.bincount(domain_of, weights=rooms, minlength=count).astype(np.int64)
    whole = np.nonzero(room_in >= needed)[0]
    if len(whole):
        domains = [int(whole[np.argmin(room_in[whole])])]
    elif shape.pack_required:
        return None
    else:
        domains = []
        for domain in np.argsort(-room_in, kind="stable"):
            tight = np.nonzero((room_in >= needed) & ~np.isin(np.arange(count), domains))[0]
            if len(tight):
                domains.append(int(tight[np.argmin(room_in[tight])]))
                break
            domains.append(int(domain))
            needed -= int(room_in[domain])
    return len(domains), [int(number) for number in np.nonzero(np.isin(domain_of, domains) & (rooms > 0))[0]]
