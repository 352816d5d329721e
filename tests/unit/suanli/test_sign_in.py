"""The device flow against a provider of few words, the file of logins, and what goes into calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from suanli.errors import ConfigurationError, Unauthenticated, Unavailable
from suanli.settings import Settings, logins_file
from suanli.sign_in.bearer import Bearer
from suanli.sign_in.issuer import DeviceCode, Provider
from suanli.sign_in.logins import Login, find_login, forget_login, keep_login
from tests.support.oidc import web

BEGUN = {
    "device_code": "dc",
    "user_code": "ABCD",
    "verification_uri": "https://id.example/device",
    "expires_in": 600,
    "interval": 5,
}
GOOD = {"access_token": "at", "refresh_token": "rt", "expires_in": 600}


class Fake:
    """A provider that says what it is told to. ``answers``: of the token endpoint, one after another."""

    def __init__(self) -> None:
        self.begun: Any = dict(BEGUN)
        self.answers: list[tuple[int, Any]] = []
        self.metadata: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    def answer(self, path: str, fields: dict[str, str]) -> tuple[int, bytes]:
        self.asked.append((path, fields))
        status, found = 200, None
        if path == "/.well-known/openid-configuration":
            ends = {
                f"{name}_endpoint": f"{self.url}/{name}" for name in ("token", "device_authorization", "revocation")
            }
            found = {"issuer": self.url, **ends, **self.metadata}
        elif path == "/device_authorization":
            found = self.begun
        elif path == "/token":
            status, found = self.answers.pop(0)
        return status, found if isinstance(found, bytes) else json.dumps(found or {}).encode()

    def provider(self) -> Provider:
        return Provider(self.url, "cli")


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    with web(made.answer) as made.url:
        yield made


def pending(error: str = "authorization_pending") -> tuple[int, dict[str, str]]:
    return 400, {"error": error}


def waited(fake: Fake, *answers: tuple[int, Any], lasts_s: int = 600) -> tuple[Any, list[float]]:
    """What ``wait`` gives, and its pauses."""
    fake.answers = list(answers)
    pauses: list[float] = []
    code = DeviceCode("dc", "ABCD", "https://id.example", "", 5, lasts_s)
    return fake.provider().wait(code, pauses.append, lambda: sum(pauses)), pauses


def test_a_code_is_asked_for_with_the_scopes_of_the_platform(fake: Fake) -> None:
    code = fake.provider().begin(("openid", "offline_access"))
    assert (code.user_code, code.url, code.complete_url, code.interval_s) == ("ABCD", BEGUN["verification_uri"], "", 5)
    assert fake.asked[-1] == ("/device_authorization", {"scope": "openid offline_access", "client_id": "cli"})


def test_the_flow_waits_and_slows_down_as_it_is_told(fake: Fake) -> None:
    tokens, pauses = waited(fake, pending(), pending("slow_down"), pending(), (503, {}), (200, GOOD))
    assert pauses == [5, 5, 10, 10, 20]
    assert (tokens.access_token, tokens.refresh_token) == ("at", "rt")
    assert 590_000 < tokens.expire_ms - time.time() * 1000 <= 600_000
    assert fake.asked[-1][1]["device_code"] == "dc"


@pytest.mark.parametrize(
    ("error", "words"),
    [("access_denied", "refused"), ("expired_token", "in time"), ("invalid_client", "invalid_client")],
)
def test_the_flow_ends_when_it_is_refused(fake: Fake, error: str, words: str) -> None:
    with pytest.raises(Unauthenticated, match=words):
        waited(fake, pending(), pending(error))


def test_the_flow_does_not_wait_forever(fake: Fake) -> None:
    with pytest.raises(Unauthenticated, match="in time"):
        waited(fake, *[pending()] * 100, lasts_s=60)


@pytest.mark.parametrize(
    "change",
    [
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "file:///etc/passwd"},
        {"verification_uri_complete": "vbscript:x"},
        {"device_code": ""},
        {"user_code": 7},
        {"expires_in": "soon"},
        {"interval": None},
    ],
)
def test_a_code_that_makes_no_sense_is_not_shown(fake: Fake, change: dict[str, Any]) -> None:
    fake.begun.update(change)
    with pytest.raises(Unavailable):
        fake.provider().begin(("openid",))


@pytest.mark.parametrize(
    "answer", [{}, {"access_token": ""}, {"access_token": "a\nb"}, {"access_token": 5}, b"[]", b"<"]
)
def test_an_answer_that_is_no_token_is_none(fake: Fake, answer: Any) -> None:
    fake.answers = [(200, answer)]
    with pytest.raises(Unavailable):
        fake.provider().refresh("rt")


def test_tokens_go_to_no_other_provider_and_not_in_plain_text(fake: Fake) -> None:
    fake.metadata = {"issuer": "https://other.example"}
    with pytest.raises(Unavailable, match="not the discovery document"):
        fake.provider().refresh("rt")
    fake.metadata = {"token_endpoint": "http://id.example/token"}
    with pytest.raises(ConfigurationError, match="not an https address"):
        fake.provider().refresh("rt")
    with pytest.raises(ConfigurationError, match="not an https address"):
        Provider("http://127.0.0.1.example", "cli").begin(("openid",))
    assert all(path == "/.well-known/openid-configuration" for path, _ in fake.asked)


def login(address: str = "127.0.0.1:1", **values: Any) -> Login:
    return Login(address, **{"access_token": "at", "refresh_token": "rt", **values})


def test_the_file_keeps_one_login_for_each_address(tmp_path: Path) -> None:
    path = tmp_path / "new" / "logins.json"
    assert find_login(path) is None
    for one in (login(), login("b:2"), login(access_token="later")):
        keep_login(path, one)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (find_login(path), find_login(path, "b:2")) == (login(access_token="later"), login("b:2"))
    assert forget_login(path) == login(access_token="later")
    assert (forget_login(path, "c:3"), find_login(path)) == (None, login("b:2"))


def test_a_file_that_others_may_read_or_that_is_damaged_is_said(tmp_path: Path) -> None:
    path = tmp_path / "logins.json"
    keep_login(path, login())
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        find_login(path)
    path.chmod(0o600)
    for text in ("", "[]", '{"logins": [{"address": "a", "expire_ms": "never"}]}', '{"logins": [{"nix": 1}]}'):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="damaged"):
            find_login(path)


@contextmanager
def no_fetch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Provider, "refresh", None)
    yield


async def test_a_token_that_lasts_is_shown_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_fetch(monkeypatch):
        lasting = login(expire_ms=time.time_ns() // 1_000_000 + 600_000)
        assert await Bearer("", lasting, tmp_path / "none").value() == "at"
        assert await Bearer("", login(), tmp_path / "none").value() == "at"
        assert await Bearer("key", lasting, tmp_path / "none").value() == "key"
        assert await Bearer("", None, tmp_path / "none").value() == ""


def soon(fake: Fake, left_ms: int = 5_000, **values: Any) -> Login:
    now = time.time_ns() // 1_000_000
    return login(issuer=fake.url, client_id="cli", expire_ms=now + left_ms, **values)


async def test_a_token_that_ends_is_renewed_and_kept(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "logins.json"
    keep_login(path, soon(fake))
    fake.answers = [(200, {"access_token": "at2", "expires_in": 600})]
    bearer = Bearer("", soon(fake), path)
    assert [await bearer.value(), await bearer.value()] == ["at2", "at2"]
    kept = find_login(path)
    assert kept is not None
    assert (kept.access_token, kept.refresh_token) == ("at2", "rt")
    # Another process finds what this one got.
    assert await Bearer("", soon(fake), path).value() == "at2"


async def test_a_login_that_cannot_be_renewed_ends(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "logins.json"
    keep_login(path, soon(fake))
    fake.answers = [pending("invalid_grant"), (503, {}), (503, {})]
    with pytest.raises(Unauthenticated, match="suanli login"):
        await Bearer("", soon(fake), path).value()
    # A provider that is away for a moment costs nothing while the token lasts.
    assert await Bearer("", soon(fake), path).value() == "at"
    keep_login(path, soon(fake, -1))
    with pytest.raises(Unavailable):
        await Bearer("", soon(fake, -1), path).value()
    forget_login(path)
    with pytest.raises(Unauthenticated, match="logged out"):
        await Bearer("", soon(fake), path).value()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    for name in ("ADDRESS", "API_KEY", "CA", "STATE_DIR", "PROFILE"):
        monkeypatch.delenv(f"SUANLI_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def profile(text: str) -> None:
        (tmp_path / "suanli").mkdir(exist_ok=True)
        (tmp_path / "suanli" / "config.toml").write_text(text)
        (tmp_path / "suanli" / "config.toml").chmod(0o600)

    return profile


def test_a_login_is_for_its_address_and_behind_a_key_that_is_given(home: Callable[[str], None]) -> None:
    path = logins_file()
    keep_login(path, login("l.example:1", ca="l.pem"))
    found = Settings.resolve()
    assert (found.address, found.api_key, found.ca, found.login) == ("l.example:1", "", "l.pem", find_login(path))
    assert "rt" not in repr(found)
    assert Settings.resolve("other.example:1").login is None
    assert Settings.resolve("l.example:1").login is not None
    given = Settings.resolve("l.example:1", "key")
    assert (given.api_key, given.login) == ("key", None)
    home('[default]\naddress = "p.example:1"\napi_key = "p-key"\n')
    assert (Settings.resolve().api_key, Settings.resolve().login) == ("p-key", None)
    keep_login(path, login("p.example:1"))
    assert (Settings.resolve().api_key, Settings.resolve().login) == ("", find_login(path, "p.example:1"))
    named = Settings.resolve(profile="default")
    assert (named.api_key, named.login) == ("p-key", None)
    keep_login(path, Login("p.example:1", api_key="kept"))
    assert (Settings.resolve().api_key, Settings.resolve().login) == ("kept", None)
