"""What the fuzzer has found once, and what it starts from, is answered as it should be: see ``tests/fuzz``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.platform import NAMES, Fault, Platform, decoded

FOUND = sorted(path for path in (Path(__file__).parents[1] / "fuzz/found").iterdir() if path.suffix != ".md")


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    platform = Platform()
    yield platform
    platform.close()


def test_what_was_found_is_answered(platform: Platform) -> None:
    for path in FOUND:
        try:
            platform.call(path.read_bytes())
        except Fault as fault:
            raise AssertionError(f"{path.name}: {fault}") from fault


def test_each_call_is_begun_with_a_valid_request_and_answered(platform: Platform) -> None:
    assert {decoded(seed)[0] for seed in platform.seeds.values()} == set(NAMES)
    answers = {name: platform.call(seed).name for name, seed in platform.seeds.items()}
    assert list(answers.values()).count("OK") > len(NAMES)


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 5, b"\0\0\0\0\1\x0b" + b"\x0b" * 999])
def test_any_bytes_are_an_input(platform: Platform, data: bytes) -> None:
    platform.call(data)


def test_a_server_that_fails_is_noticed(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.api.gate.scope_within", lambda *_: 1 / 0)
    seed = next(seed for seed in platform.seeds.values() if decoded(seed)[0].endswith("GetJob"))
    with pytest.raises(Fault, match="GetJob as op: INTERNAL"):
        platform.call(seed)
