"""Bearer tokens (RFC 6750) that are JWT access tokens (RFC 7519, RFC 9068): checked whole, then remembered until they end."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jwt

from scheduler.domain.errors import Unauthenticated
from scheduler.identity.issuers import ROLES, Issuer
from scheduler.identity.keys import Fetch, Key, KeySet

MAX_TOKEN_CHARS = 8_192
MAX_REMEMBERED = 10_000
MAX_KID_CHARS = 256
MAX_ROLE_NAMES = 256
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SLUG = re.compile(r"[a-z][a-z0-9-]{0,62}")
_OF_ID_TOKENS = {"nonce", "at_hash", "c_hash"}
_ALWAYS = ("iss", "aud", "exp", "iat")


class Identity(NamedTuple):
    """What a checked token says. ``roles`` are values of ``suanli.v1.Role``; None: the token does not limit them.

    ``institution`` and ``project`` are empty where the token says nothing of them. At ``expire_ms`` it is good no more.
    """

    issuer: Issuer
    user: str
    institution: str
    project: str
    roles: tuple[int, ...] | None
    title: str
    expire_ms: int


class Known(NamedTuple):
    """What a token says, and the key that vouches for it."""

    identity: Identity
    key: Key


class Tokens:
    """Knows tokens of the configured issuers. For one event loop."""

    def __init__(
        self, issuers: tuple[Issuer, ...], now_ms: Callable[[], int], fetch: Callable[[Issuer], Fetch]
    ) -> None:
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._keys = {issuer.issuer: KeySet(issuer, now_ms, fetch(issuer)) for issuer in issuers}
        self._now_ms = now_ms
        self._known: OrderedDict[bytes, Known] = OrderedDict()

    @property
    def any(self) -> bool:
        """Whether any issuer is trusted."""
        return bool(self._issuers)

    def check(self, known: Known) -> None:
        """Raise ``Unauthenticated`` when a token has ended, or its issuer has withdrawn the key that vouched for it."""
        identity, key = known
        if identity.expire_ms <= self._now_ms():
            raise _expired()
        if self._keys[identity.issuer.issuer].known(key.kid, key.algorithm) != key:
            _refuse("its issuer has withdrawn its key")

    async def identify(self, token: str) -> Known:
        """Check a token. Raises ``Unauthenticated``; ``Unavailable`` when its issuer's keys cannot be had."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._remembered(digest)
        if known is not None:
            return known
        issuer, kid, algorithm = self._header_of(token)
        key = await self._keys[issuer.issuer].find(kid, algorithm)
        if key is None:
            _refuse("its key is none of its issuer's")
        known = Known(identity_of(issuer, verified(issuer, token, key)), key)
        self.check(known)
        self._known[digest] = known
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return known

    def _remembered(self, digest: bytes) -> Known | None:
        """What was said of a token before; None when it has to be checked anew."""
        known = self._known.get(digest)
        if known is None:
            return None
        try:
            self.check(known)
        except Unauthenticated:
            del self._known[digest]
            return None
        self._known.move_to_end(digest)
        return known

    def _header_of(self, token: str) -> tuple[Issuer, str, str]:
        """The issuer that a token names, whose keys alone are tried; its key's id and its algorithm. Nothing is verified yet."""
        if len(token) > MAX_TOKEN_CHARS or _COMPACT.fullmatch(token) is None:
            _refuse("it is not a signed token of at most 8 KiB")
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
        except Exception:
            # Whatever a stranger wrote: damaged text, numbers without end, a thousand brackets.
            _refuse("it cannot be read")
        name = claims.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            _refuse("its issuer is not one of this platform's")
        if header.get("alg") not in issuer.algorithms:
            _refuse("its algorithm is not taken")
        kind = header.get("typ")
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _lower(issuer.token_types):
            _refuse("its type is not that of an access token")
        kid = header.get("kid")
        if not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_CHARS:
            _refuse("it names no key")
        return issuer, kid, header["alg"]


def verified(issuer: Issuer, token: str, key: Key) -> dict[str, Any]:
    """The claims of a token when signature, issuer, audience and times are right; raises ``Unauthenticated``."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            leeway=issuer.clock_skew_s,
            options={"require": [*_ALWAYS, *issuer.required_claims]},
        )
    except jwt.ExpiredSignatureError:
        raise _expired() from None
    except jwt.InvalidTokenError as error:
        _refuse(str(error).rstrip(".").lower() or type(error).__name__)
    except Exception:
        _refuse("its claims cannot be read")
    # Of issuers that mark all their tokens alike: what an ID token and a refresh token say of themselves.
    if (
        claims.get("token_use", "access") != "access"
        or claims.get("typ", "Bearer") != "Bearer"
        or _OF_ID_TOKENS & set(claims)
    ):
        _refuse("it is an ID token or a refresh token, not an access token")
    return claims


def identity_of(issuer: Issuer, claims: Mapping[str, Any]) -> Identity:
    """What verified claims mean; raises ``Unauthenticated`` when one that is mapped is missing or no id."""
    names = issuer.claims
    user = issuer.user_prefix + _text(claims, names.user)
    if _SLUG.fullmatch(user) is None:
        _refuse(f"its claim {names.user} makes no user's id (lower case, digits and hyphens; see user_prefix)")
    institution = issuer.home
    if names.institution and not (issuer.platform_users and _claim(claims, names.institution) is None):
        said = _text(claims, names.institution)
        institution = issuer.institution_names.get(said, said)
    if institution and institution not in issuer.institutions:
        _refuse("its issuer does not speak for its institution")
    project = _text(claims, names.project) if names.project else ""
    roles = _roles(issuer, claims) if names.roles else None
    title = claims.get("name")
    ends_s = min(int(claims["exp"]), int(claims["iat"]) + issuer.max_token_age_s) + issuer.clock_skew_s
    return Identity(
        issuer, user, institution, project, roles, title[:256] if isinstance(title, str) else "", ends_s * 1000
    )


def _roles(issuer: Issuer, claims: Mapping[str, Any]) -> tuple[int, ...]:
    said = _claim(claims, issuer.claims.roles)
    if isinstance(said, str):
        said = said.split()
    if not isinstance(said, list) or len(said) > MAX_ROLE_NAMES:
        _refuse(f"its claim {issuer.claims.roles} is missing or no list")
    wanted = (issuer.role_names.get(name, name) for name in said if isinstance(name, str))
    return tuple(sorted({ROLES[name] for name in wanted if name in ROLES}))


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or else by a path of names with dots between."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _text(claims: Mapping[str, Any], path: str) -> str:
    found = _claim(claims, path)
    if not isinstance(found, str) or not 0 < len(found) <= 256:
        _refuse(f"its claim {path} is missing or no text")
    return found


def _lower(names: tuple[str, ...]) -> set[str]:
    return {name.lower() for name in names}


def _expired() -> Unauthenticated:
    return Unauthenticated("The token has expired; `suanli login` gets a new one.", reason="TOKEN_EXPIRED")


def _refuse(why: str) -> NoReturn:
    raise Unauthenticated(f"The token is not taken: {why}.", reason="TOKEN_REFUSED")
