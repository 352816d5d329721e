"""What data stewards do on a ``Site``, one step after another."""

from __future__ import annotations

from typing import Any

from scheduler.domain.agent import AgentCommand
from scheduler.domain.classification import Classification
from scheduler.domain.records import UserRecord
from scheduler.governance.data import Action, DataSet, Grant, GrantStatus
from scheduler.service import registering, tenants
from tests.unit.service.harness import Site

READ = frozenset({Action.READ})
STEWARD = 6


class Stewards:
    """Two stewards of "south", of whom each approves what the other has asked for."""

    def __init__(self, site: Site) -> None:
        self._site = site
        for user in ("sam", "sue"):
            tenants.put_user(site.engine.state, UserRecord(user, "south", "", STEWARD, 0, 0))

    def put(self, name: str = "census", version: str = "2024", **values: Any) -> DataSet:
        """Register a version, restricted and in "east" if nothing else is said."""
        terms: dict[str, Any] = {"classification": Classification.RESTRICTED, "home_region": "east"} | values
        terms = {"institution": "south", "steward": "sam"} | terms
        data_set = registering.put_data_set(self._site.engine.state, DataSet(name, version, **terms), "sam", "south")
        self._site.turn()
        return data_set

    def request(self, name: str = "census", **values: Any) -> Grant:
        """Ask for "north", for a thesis."""
        terms: dict[str, Any] = {"project": "", "version": "*", "purpose": "thesis", "actions": READ} | values
        terms = {"institution": "north", "status": GrantStatus.REQUESTED} | terms
        asked = Grant("", data_set=name, **terms)
        grant = registering.request_grant(self._site.engine.state, asked, "sue", "south")
        self._site.turn()
        return grant

    def grant(self, name: str = "census", **values: Any) -> Grant:
        """Ask and approve."""
        asked = self.request(name, **values)
        grant = registering.decide_grant(self._site.engine.state, asked.grant, True, "", "sam", "south")
        self._site.turn()
        return grant

    def revoke(self, grant: Grant) -> list[AgentCommand]:
        """Take it back; what agents are told."""
        registering.revoke_grant(self._site.engine.state, grant.grant, "over", "sam", "south")
        return self._site.turn()

    def withdraw(self, version: str = "2024", name: str = "census") -> list[AgentCommand]:
        """Withdraw a version; what agents are told."""
        registering.withdraw(self._site.engine.state, name, version, "consent", "sam", "south")
        return self._site.turn()
