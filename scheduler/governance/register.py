"""All data sets and grants of the platform."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scheduler.domain.classification import Classification
from scheduler.governance.data import DataSet, Grant, GrantStatus
from scheduler.governance.decision import Decision, Place, Use, decide

NEVER = 1 << 62


class Register:
    """What is registered. A name alone, "census", stands for the newest version that was not withdrawn; "census@2024" for that one."""

    def __init__(self) -> None:
        self.data_sets: dict[tuple[str, str], DataSet] = {}
        self.grants: dict[str, Grant] = {}
        self._versions: dict[str, list[DataSet]] = {}
        """By name, the oldest first."""
        self._grants_of: dict[str, dict[str, Grant]] = {}

    def __bool__(self) -> bool:
        return bool(self.data_sets)

    def put(self, data_set: DataSet) -> None:
        """A new version, or new terms of one."""
        self.data_sets[data_set.name, data_set.version] = data_set
        found = (each for (name, _), each in self.data_sets.items() if name == data_set.name)
        self._versions[data_set.name] = sorted(found, key=lambda each: (each.create_ms, each.version))

    def put_grant(self, grant: Grant) -> None:
        """A new grant, or one that stands otherwise now."""
        self.grants[grant.grant] = grant
        self._grants_of.setdefault(grant.data_set, {})[grant.grant] = grant

    def versions(self, name: str) -> tuple[DataSet, ...]:
        """All of a name, the oldest first."""
        return tuple(self._versions.get(name, ()))

    def names(self) -> Iterator[str]:
        """All names."""
        return iter(self._versions)

    def resolve(self, reference: str, at_ms: int = NEVER) -> DataSet | None:
        """What a name in a job stands for, or stood for at an instant; None: nothing."""
        name, at, version = reference.partition("@")
        if at:
            return self.data_sets.get((name, version))
        known = [each for each in self._versions.get(name, ()) if each.create_ms <= at_ms]
        # What began in the very millisecond of a withdrawal may have been given what was withdrawn.
        live = [each for each in known if not each.withdrawn_ms or each.withdrawn_ms >= at_ms]
        found = live or known
        return found[-1] if found else None

    def meant(self, reference: str, from_ms: int, to_ms: int) -> list[DataSet]:
        """All versions that a name in a job may have stood for between two instants."""
        first = self.resolve(reference, from_ms)
        found = [] if first is None else [first]
        if "@" not in reference:
            found += [each for each in self._versions.get(reference, ()) if from_ms < each.create_ms <= to_ms]
        # After a withdrawal the name stands for an earlier version again.
        last = self.resolve(reference, to_ms)
        return list({each.reference: each for each in (*found, last) if each is not None}.values())

    def grants_of(self, name: str) -> Iterable[Grant]:
        """Those that are about a data set, the oldest first."""
        return self._grants_of.get(name, {}).values()

    def knows(self, institution: str, data_set: DataSet) -> bool:
        """Whether people of an institution may know that there is such a data set."""
        return (
            data_set.listed
            or data_set.classification is Classification.PUBLIC
            or data_set.institution == institution
            or any(grant.institution == institution for grant in self.grants_of(data_set.name))
        )

    def decide(self, use: Use, place: Place | None = None) -> Decision:
        """See ``scheduler.governance.decision.decide``, by what is registered now."""
        data_sets = {name: self.resolve(name) for name in use.data_sets}
        names = dict.fromkeys(each.name for each in data_sets.values() if each is not None)
        return decide(use, place, data_sets, [grant for name in names for grant in self.grants_of(name)])

    def next_change_ms(self, after_ms: int) -> int:
        """When time alone may next change a decision: a grant begins or ends, or a retention ends."""
        at_ms = NEVER
        for grant in self.grants.values():
            if grant.status is GrantStatus.APPROVED:
                at_ms = min([at_ms, *(each for each in (grant.from_ms, grant.to_ms) if each > after_ms)])
        for data_set in self.data_sets.values():
            if data_set.retention_until_ms > after_ms:
                at_ms = min(at_ms, data_set.retention_until_ms)
        return at_ms
