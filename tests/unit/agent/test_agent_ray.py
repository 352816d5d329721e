"""The tokens of ray jobs: one for each attempt, the same after a restart, and found in nothing that is kept or printed."""

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from workers.agent_ray import SECRET_FILE, RayTokens, load_tokens
from workers.executor.types import Launch, RayCluster


def test_each_attempt_has_a_token_of_its_own_on_all_its_ranks() -> None:
    tokens = RayTokens(b"secret")
    seen = {tokens.token(job, attempt) for job in ("a", "a1", "b") for attempt in (1, 11)}
    seen.add(RayTokens(b"another").token("a", 1))
    assert len(seen) == 7
    assert all(len(token) == 64 for token in seen)
    one = Launch("a", 1, ("true",), ray=RayCluster(512))
    ranks = [tokens.equip(dataclasses.replace(one, rank=rank)).ray for rank in (0, 1)]
    assert ranks == [RayCluster(512, tokens.token("a", 1))] * 2
    assert tokens.equip(dataclasses.replace(one, ray=None)).ray is None


def test_a_launch_that_is_printed_shows_no_token() -> None:
    launch = RayTokens(b"secret").equip(Launch("a", 1, ("true",), ray=RayCluster()))
    assert launch.ray is not None
    assert launch.ray.token not in repr(launch)


def test_the_secret_is_made_once_for_the_agents_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first = load_tokens(tmp_path)
    finally:
        os.umask(before)
    path = tmp_path / SECRET_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [SECRET_FILE]
    assert load_tokens(tmp_path).token("a", 1) == first.token("a", 1)
    path.write_bytes(b"short")
    with pytest.raises(OSError, match="does not hold 32 bytes"):
        load_tokens(tmp_path)


def test_two_agents_have_nothing_in_common(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert load_tokens(tmp_path / "one").token("a", 1) != load_tokens(tmp_path / "two").token("a", 1)
