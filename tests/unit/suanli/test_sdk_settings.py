"""Where the address and the key come from, and what goes before what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suanli.errors import ConfigurationError
from suanli.settings import Settings


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("ADDRESS", "API_KEY", "CA", "STATE_DIR", "PROFILE"):
        monkeypatch.delenv(f"SUANLI_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def profile(home: Path, text: str, mode: int = 0o600) -> None:
    path = home / "config" / "suanli" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def up(folder: Path, address: str = "127.0.0.1:7001", key: str = "local-key") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "admin.key").write_text(key + "\n")
    document = {"version": 1, "address": address, "key_file": str(folder / "admin.key"), "ca": "", "processes": []}
    (folder / "up.json").write_text(json.dumps(document))


PROFILE = '[default]\naddress = "p.example:1"\napi_key = "p-key"\nca = "p.pem"\n[lab]\naddress = "l.example:2"\n'


def test_an_argument_goes_before_the_environment_before_a_profile_before_a_local_deployment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up(home / ".local" / "state" / "suanli")
    found = Settings.resolve()
    assert (found.address, found.api_key, found.loopback) == ("127.0.0.1:7001", "local-key", True)
    profile(home, PROFILE)
    found = Settings.resolve()
    assert (found.address, found.api_key, found.ca, found.loopback) == ("p.example:1", "p-key", "p.pem", False)
    monkeypatch.setenv("SUANLI_ADDRESS", "e.example:3")
    monkeypatch.setenv("SUANLI_API_KEY", "e-key")
    found = Settings.resolve()
    assert (found.address, found.api_key, found.ca) == ("e.example:3", "e-key", "")
    found = Settings.resolve("a.example:4", "a-key", ca="a.pem")
    assert (found.address, found.api_key, found.ca) == ("a.example:4", "a-key", "a.pem")


def test_a_profile_is_chosen_by_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(home, PROFILE)
    assert Settings.resolve(profile="lab").address == "l.example:2"
    monkeypatch.setenv("SUANLI_PROFILE", "lab")
    assert Settings.resolve().address == "l.example:2"
    with pytest.raises(ConfigurationError, match=r"no profile 'nix'; there are: default, lab"):
        Settings.resolve(profile="nix")


def test_a_state_folder_that_is_named_goes_before_the_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile(home, PROFILE)
    up(home / "elsewhere")
    assert Settings.resolve(state_dir=home / "elsewhere").api_key == "local-key"
    monkeypatch.setenv("SUANLI_STATE_DIR", str(home / "elsewhere"))
    assert Settings.resolve().address == "127.0.0.1:7001"
    assert Settings.resolve(profile="default").address == "p.example:1"


def test_a_key_from_a_file_goes_to_the_address_of_that_file_only(home: Path) -> None:
    profile(home, PROFILE)
    up(home / ".local" / "state" / "suanli")
    assert Settings.resolve("stranger.example:1").api_key == ""
    assert Settings.resolve("p.example:1").api_key == "p-key"
    assert Settings.resolve("127.0.0.1:7001").api_key == "local-key"
    assert Settings.resolve(api_key="mine").address == "p.example:1"
    assert "p-key" not in repr(Settings.resolve())


def test_a_profile_with_a_key_is_for_its_owner_only(home: Path) -> None:
    profile(home, PROFILE, mode=0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Settings.resolve()
    # Who needs nothing of it is not held up.
    assert Settings.resolve("a.example:4", "a-key").address == "a.example:4"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[default", "TOML"),
        ('[default]\nadress = "x:1"\n', "'adress' is not understood"),
        ("default = 3\n", "not understood"),
    ],
)
def test_a_damaged_profile_is_named(home: Path, text: str, says: str) -> None:
    profile(home, text)
    with pytest.raises(ConfigurationError, match=says):
        Settings.resolve()


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1, "address": ""}', '"x"'])
def test_a_deployment_that_is_down_or_damaged_gives_no_address(home: Path, content: str) -> None:
    folder = home / "state"
    folder.mkdir()
    (folder / "up.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"No control plane is known|damaged"):
        Settings.resolve(state_dir=folder)


@pytest.mark.parametrize(
    "address", ["host", "host:", ":1", "host:0", "host:65536", "https://host:1", "host:x", "host:１"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT") as caught:
        Settings.resolve(address)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("10.0.0.1:1", False),
        ("localhost.evil:1", False),
    ],
)
def test_only_this_machine_is_spoken_to_in_plain_text(address: str, loopback: bool) -> None:
    assert Settings.resolve(address).loopback is loopback
