"""Tokens that are none: every one is refused, by the check that is there for it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scheduler.domain.errors import SuanliError, Unauthenticated, Unavailable
from scheduler.identity import tokens as module
from scheduler.identity.fetching import FetchError
from scheduler.identity.issuers import Claims, Issuer
from scheduler.identity.keys import REFETCH_MS, REFRESH_MS, STALE_MS, usable_keys
from scheduler.identity.tokens import Tokens
from tests.support.oidc import AUDIENCE, jwk, private_key, token

A, B = "https://a.example", "https://b.example"


class Net:
    """What the issuers serve, and how often they were asked."""

    def __init__(self) -> None:
        self.keys = {A: [jwk("k1")], B: [jwk("k2")]}
        self.asked = 0
        self.away = False

    def fetch(self, url: str) -> dict[str, Any]:
        self.asked += 1
        if self.away:
            raise FetchError("it is away")
        return {"keys": self.keys[url.removesuffix("/keys")]}


class World:
    """Two issuers, each for an institution of its own, and a clock that a test moves."""

    def __init__(self, **changes: Any) -> None:
        self.net = Net()
        self.ahead_ms = 0
        issuers = tuple(
            Issuer(url, AUDIENCE, **{"jwks_url": f"{url}/keys", "institutions": (home,), **changes})
            for url, home in ((A, "uni-a"), (B, "uni-b"))
        )
        self.tokens = Tokens(issuers, self.now_ms, lambda issuer: self.net.fetch)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms

    async def identify(self, text: str) -> module.Identity:
        return (await self.tokens.identify(text)).identity

    async def refusal(self, text: str) -> str:
        with pytest.raises(Unauthenticated) as caught:
            await self.tokens.identify(text)
        assert not text or text not in caught.value.message
        return caught.value.message


def b64(data: Any) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def by_hand(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"x") -> str:
    return f"{b64(header)}.{b64(claims)}.{b64(signature)}"


def claims_now(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": A, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600, **changes}


async def test_a_good_token_says_who_and_until_when() -> None:
    said = await World().identify(token(A, name="Ada L."))
    assert (said.user, said.institution, said.roles, said.project, said.title) == ("ada", "uni-a", None, "", "Ada L.")
    assert 0 < said.expire_ms - time.time() * 1000 <= 630_000


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
async def test_each_algorithm_that_is_configured_is_taken_and_no_other(algorithm: str) -> None:
    world = World(algorithms=(algorithm,))
    world.net.keys[A] = [jwk("k1", algorithm)]
    assert (await world.identify(token(A, algorithm=algorithm))).user == "ada"
    other = "ES256" if algorithm != "ES256" else "RS256"
    assert "algorithm" in await world.refusal(token(A, algorithm=other))


async def test_a_token_without_a_signature_is_none() -> None:
    world = World()
    header = {"alg": "none", "kid": "k1", "typ": "at+jwt"}
    unsigned = by_hand(header, claims_now())
    assert "algorithm" in await world.refusal(unsigned)
    assert "signed" in await world.refusal(unsigned.rpartition(".")[0] + ".")


async def test_the_public_key_is_no_shared_secret() -> None:
    world = World()
    public = private_key("k1").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = f"{b64({'alg': 'HS256', 'kid': 'k1', 'typ': 'at+jwt'})}.{b64(claims_now())}"
    forged = f"{body}.{b64(hmac.new(public, body.encode(), hashlib.sha256).digest())}"
    assert "algorithm" in await world.refusal(forged)


async def test_a_key_serves_its_own_algorithm_only() -> None:
    world = World(algorithms=("RS256", "PS256"))
    assert (await world.identify(token(A))).user == "ada"
    world.net.keys[B] = [jwk("k2", alg="PS256")]
    assert "key is none" in await world.refusal(token(B, key="k2"))


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"iss": "https://c.example"}, "issuer"),
        ({"iss": A + "/"}, "issuer"),
        ({"iss": [A]}, "issuer"),
        ({"aud": "another"}, "audience"),
        ({"aud": ["another", "third"]}, "audience"),
        ({"exp": 1_000_000}, "expired"),
        ({"nbf": 2_000_000_000_000}, "not yet valid"),
        ({"iat": 2_000_000_000_000}, "not yet valid"),
        ({"exp": "never"}, "expiration"),
        ({"exp": 1e400}, "integer"),
        ({"sub": 5}, "subject"),
        ({"sub": ""}, "sub is missing"),
        ({"sub": "Ada"}, "user's id"),
        ({"sub": "../../op"}, "user's id"),
        ({"sub": "a" * 64}, "user's id"),
        ({"sub": "ada\n"}, "user's id"),
        ({"nonce": "n"}, "ID token"),
        ({"token_use": "refresh"}, "refresh token"),
        ({"typ": "Refresh"}, "refresh token"),
    ],
)
async def test_a_claim_that_is_wrong_refuses_the_token(claims: dict[str, Any], words: str) -> None:
    assert words in await World().refusal(_of(claims))


def _of(claims: dict[str, Any]) -> str:
    body = json.dumps(claims_now(**claims)).encode()
    return jwt.PyJWS().encode(body, private_key("k1"), "RS256", headers={"kid": "k1", "typ": "at+jwt"})


@pytest.mark.parametrize("name", ["iss", "aud", "exp", "iat", "sub"])
async def test_a_claim_that_is_missing_refuses_the_token(name: str) -> None:
    assert await World().refusal(token(A, without=(name,)))


async def test_a_claim_that_is_required_must_be_there() -> None:
    world = World(required_claims=("jti",))
    assert "jti" in await world.refusal(token(A))
    assert await world.identify(token(A, jti="1"))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"typ": "JWT"}, "type"),
        ({"typ": None}, "type"),
        ({"kid": "../../etc/passwd"}, "key is none"),
        ({"kid": "k" * 300}, "names no key"),
        ({"kid": ""}, "names no key"),
        ({"crit": ["b64"], "b64": False}, "cannot be read"),
        ({"jwk": jwk("stranger"), "kid": "stranger"}, "key is none"),
        ({"jku": "https://evil.example/keys", "kid": "stranger"}, "key is none"),
    ],
)
async def test_a_header_leads_nowhere_else(header: dict[str, Any], words: str) -> None:
    head = {"alg": "RS256", "kid": "k1", "typ": "at+jwt", **header}
    assert words in await World().refusal(by_hand(head, claims_now()))


async def test_a_stranger_with_the_right_key_id_cannot_sign() -> None:
    now = claims_now()
    forged = jwt.encode(now, private_key("stranger"), algorithm="RS256", headers={"kid": "k1", "typ": "at+jwt"})
    assert "signature" in await World().refusal(forged)


async def test_the_key_of_one_issuer_signs_nothing_of_another() -> None:
    world = World()
    assert await world.identify(token(B, key="k2"))
    # B signs that it is A, with the key that B's set holds: A's keys alone are tried.
    assert "key is none" in await world.refusal(token(A, key="k2"))
    world.net.keys[B] = [jwk("k2"), {**jwk("k2"), "kid": "k1"}]
    forged = jwt.encode(claims_now(), private_key("k2"), algorithm="RS256", headers={"kid": "k1", "typ": "at+jwt"})
    assert "signature" in await world.refusal(forged)


async def test_an_issuer_speaks_for_its_own_institutions() -> None:
    world = World(claims=Claims(institution="home"), institution_names={"a.edu": "uni-a"})
    assert (await world.identify(token(A, home="a.edu"))).institution == "uni-a"
    assert "does not speak" in await world.refusal(token(A, home="uni-b"))
    assert "home is missing" in await world.refusal(token(A))


async def test_roles_and_project_are_read_from_where_the_configuration_says() -> None:
    claims = Claims(user="name", project="grp.p", roles="realm_access.roles")
    world = World(claims=claims, role_names={"chefs": "institution-admin"}, user_prefix="a-")
    said = await world.identify(
        token(A, name="7f", grp={"p": "lab"}, realm_access={"roles": ["chefs", "offline", "researcher", 5]})
    )
    assert (said.user, said.project, said.roles) == ("a-7f", "lab", (1, 2))
    assert (await world.identify(token(A, name="x", grp={"p": "l"}, realm_access={"roles": []}))).roles == ()
    assert "realm_access.roles" in await world.refusal(token(A, name="x", grp={"p": "l"}))
    assert "grp.p" in await world.refusal(token(A, name="x", grp={}, realm_access={"roles": []}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "....",
        "é.é.é",
        by_hand({"alg": "RS256"}, claims_now()) + "A" * 9_000,
        f"{b64(b'[' * 3000)}.{b64(b'{}')}.{b64(b'x')}",
        f"{b64({'alg': 'RS256'})}.{b64(b'[' * 3000)}.{b64(b'x')}",
        f"{b64({'alg': 'RS256'})}.{b64([1])}.{b64(b'x')}",
        f"{b64({'alg': ['RS256'], 'kid': {}, 'typ': 1})}.{b64(claims_now())}.{b64(b'x')}",
    ],
    ids=range(11),
)
async def test_what_is_no_token_is_refused_without_a_question_to_any_issuer(text: str) -> None:
    world = World()
    assert await world.refusal(text)
    assert world.net.asked == 0


async def test_a_huge_token_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    huge = token(A, padding="x" * 9_000)
    monkeypatch.setattr(jwt, "decode", None)
    assert "8 KiB" in await world.refusal(huge)


async def test_clocks_may_differ_by_the_skew_only() -> None:
    now = int(time.time())
    assert await World().identify(token(A, iat=now - 100, exp=now - 10))
    assert await World().identify(token(A, iat=now + 10, nbf=now + 10))
    assert "expired" in await World(clock_skew_s=0).refusal(token(A, iat=now - 100, exp=now - 10))
    assert await World(clock_skew_s=0).refusal(token(A, iat=now + 10))
    assert await World(clock_skew_s=0).refusal(token(A, nbf=now + 10))


async def test_a_token_is_good_for_its_greatest_age_only() -> None:
    now = int(time.time())
    world = World(max_token_age_s=3600)
    old = token(A, iat=now - 3700, exp=now + 10**9)
    assert "expired" in await world.refusal(old)
    said = await world.identify(token(A, iat=now - 3000, exp=now + 10**9))
    assert said.expire_ms <= (now + 600 + 30) * 1000


async def test_a_token_that_is_known_is_not_verified_again_and_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    text = token(A)
    known = await world.tokens.identify(text)
    monkeypatch.setattr(module, "verified", None)
    assert await world.tokens.identify(text) is known
    monkeypatch.undo()
    world.ahead_ms = 631_000
    with pytest.raises(SuanliError) as caught:
        await world.tokens.identify(text)
    assert caught.value.reason == "TOKEN_EXPIRED"
    with pytest.raises(Unauthenticated):
        world.tokens.check(known)


async def test_no_more_tokens_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    world = World()
    first = token(A, jti="first")
    for text in (first, token(A, jti="1"), token(A, jti="2"), first, token(A, jti="3")):
        await world.identify(text)
    assert len(world.tokens._known) == 3
    assert hashlib.sha256(first.encode()).digest() in world.tokens._known


async def test_a_new_key_of_the_issuer_is_fetched_when_a_token_names_it() -> None:
    world = World()
    await world.identify(token(A))
    world.net.keys[A].append(jwk("new"))
    assert await world.refusal(token(A, key="new"))
    world.ahead_ms = REFETCH_MS
    assert await world.identify(token(A, key="new"))


async def test_unknown_keys_have_the_set_fetched_once_a_minute_however_many_ask() -> None:
    world = World()
    await world.identify(token(A))
    asked = world.net.asked
    world.ahead_ms = REFETCH_MS
    await asyncio.gather(*(world.refusal(token(A, header={"kid": f"x{number}"})) for number in range(20)))
    for number in range(20):
        await world.refusal(token(A, header={"kid": f"y{number}"}))
    assert world.net.asked == asked + 1


async def _settle(world: World, asked: int) -> None:
    """Wait for the fetch that goes on beside the calls."""
    keys = world.tokens._keys[A]
    while keys._task is not None:
        await asyncio.shield(keys._task)
    assert world.net.asked == asked + 1


async def test_a_key_that_is_withdrawn_ends_the_tokens_it_signed() -> None:
    world = World()
    text = token(A)
    known = await world.tokens.identify(text)
    world.net.keys[A] = [{**jwk("thief"), "kid": "k1"}]
    world.ahead_ms = REFRESH_MS
    asked = world.net.asked
    assert await world.identify(text)
    await _settle(world, asked)
    assert "signature" in await world.refusal(text)
    with pytest.raises(Unauthenticated):
        world.tokens.check(known)


async def test_keys_serve_while_the_issuer_is_away_and_not_forever() -> None:
    world = World()
    await world.identify(token(A))
    world.net.away = True
    world.ahead_ms = STALE_MS - 60_000
    assert await world.identify(token(A, exp=int(time.time()) + 10**6, iat=int(time.time()) + 20))
    world.ahead_ms = STALE_MS
    with pytest.raises(Unavailable) as caught:
        await world.identify(token(A, jti="2"))
    assert caught.value.reason == "ISSUER_UNREACHABLE"


async def test_an_issuer_that_was_never_there_is_said_and_asked_seldom() -> None:
    world = World()
    world.net.away = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await world.identify(token(A))
    assert world.net.asked == 1
    world.net.away = False
    world.ahead_ms = 10_000
    assert await world.identify(token(A))


@pytest.mark.parametrize(
    "entry",
    [
        jwk("weak", bits=1024),
        {**jwk("k1"), "use": "enc"},
        {**jwk("k1"), "key_ops": ["sign"]},
        {**jwk("k1"), "kid": 7},
        {**jwk("k1"), "n": "?"},
        {**jwk("k1"), "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k1", "alg": "RS256"},
        {"kty": "RSA", "kid": "k1"},
        "k1",
    ],
)
def test_a_key_that_may_not_verify_is_passed_over(entry: Any) -> None:
    assert set(usable_keys({"keys": [entry, jwk("good")]}, ("RS256",))) == {("good", "RS256")}


@pytest.mark.parametrize("document", [{}, {"keys": {}}, {"keys": [jwk("k1")] * 101}])
def test_a_set_that_is_none_or_too_large_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(FetchError):
        usable_keys(document, ("RS256",))
