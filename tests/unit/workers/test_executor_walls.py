"""What an executor refuses for lack of walls."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.executor.isolation import Isolation, Tier
from workers.executor.sandbox import Sandbox
from workers.executor.types import Launch


@pytest.mark.parametrize(
    ("tier", "problem", "isolated", "refused"),
    [
        (Tier.AUTO, "", True, ""),
        (Tier.SANDBOX, "", True, ""),
        (Tier.AUTO, "no bwrap", True, "kept apart"),
        (Tier.PROCESS, "", True, "kept apart"),
        (Tier.PROCESS, "no bwrap", True, "kept apart"),
        (Tier.SANDBOX, "no bwrap", False, "no bwrap"),
        (Tier.AUTO, "no bwrap", False, ""),
        (Tier.PROCESS, "", False, ""),
    ],
)
def test_what_must_be_kept_apart_is_refused_where_it_cannot_be(
    tmp_path: Path, tier: Tier, problem: str, isolated: bool, refused: str
) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.problem = problem
    launch = Launch("job", 1, ("true",), isolation=Isolation(tier), isolated=isolated)
    said = sandbox.problem_with(launch) or ""
    assert refused in said
    assert bool(said) == bool(refused)
