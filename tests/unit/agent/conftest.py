"""An agent's core with its nodes, and with a gang on them."""

from __future__ import annotations

import pytest

from tests.unit.agent.harness import NODES, Rig, launch, started
from workers.core_types import PortAllocated


@pytest.fixture
def rig() -> Rig:
    return Rig().ready()


@pytest.fixture
def gang(rig: Rig) -> Rig:
    """A gang of three, started on three nodes."""
    rig.say(launch=launch(nodes=NODES))
    rig.feed(PortAllocated("j1", 1, 29500))
    for rank, node_id in enumerate(NODES):
        rig.executor(node_id, started(rank=rank))
    return rig
