"""The issuers of tokens a platform trusts, as they are configured, and how far."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
"""Signatures by a key of which the platform holds the public half only. "none" and the HMACs (HS…) are never among them."""
ROLES: Mapping[str, int] = MappingProxyType(
    {
        "researcher": 1,
        "institution-admin": 2,
        "finance": 3,
        "operator": 4,
        "steward": 6,
        "project-lead": 7,
        "auditor": 8,
    }
)
"""Names of roles in a token, and their values in ``suanli.v1.Role``."""
MAX_SKEW_S = 60
MAX_ISSUERS = 64


@dataclass(frozen=True)
class Claims:
    """Which claim of a token says what. A dot leads into an object, as in ``realm_access.roles``; empty: no claim does.

    A claim that is named must be in every token.
    """

    user: str = "sub"
    """The user's id, after ``user_prefix``."""
    institution: str = ""
    """An institution's id, or a name of ``institution_names``. It must be the user's own."""
    project: str = ""
    """The one project that the token is good for."""
    roles: str = ""
    """A text or a list: the token grants what one of these roles may, and never more than the user's own role. Empty: what the user
    may."""


@dataclass(frozen=True)
class Issuer:
    """One issuer. Raises ``ValueError`` that names the setting, as in "audience: …"."""

    issuer: str
    """The URL in the claim ``iss``, letter for letter; https, or http on the loopback."""
    audience: str
    """What the claim ``aud`` must hold: this platform's name at the issuer."""
    client_id: str = ""
    """The public client of ``suanli login`` at the issuer; empty: nobody logs in there by the command line."""
    title: str = ""
    """The name for people."""
    scopes: tuple[str, ...] = ("openid", "offline_access")
    """What ``suanli login`` asks for."""
    algorithms: tuple[str, ...] = ("RS256",)
    """The signatures that are taken: RS256, PS256, ES256, EdDSA."""
    token_types: tuple[str, ...] = ("at+jwt",)
    """The header ``typ`` of an access token (RFC 9068). Add ``JWT`` for an issuer that marks them so."""
    jwks_url: str = ""
    """Where the issuer's keys are; empty: its discovery document says."""
    ca: Path | None = None
    """Certificates to trust for the issuer, PEM; none: the system's."""
    institutions: tuple[str, ...] = ()
    """The institutions whose users it may speak for. Whoever runs the issuer can be each of these users."""
    platform_users: bool = False
    """Whether it may speak for users of no institution, operators among them."""
    institution_names: Mapping[str, str] = field(default_factory=dict)
    """What the issuer calls an institution: its id here."""
    role_names: Mapping[str, str] = field(default_factory=dict)
    """What the issuer calls a role: researcher, project-lead, institution-admin, finance, operator, steward or auditor. Names that are no role are passed over."""
    user_prefix: str = ""
    """Put before the claim to make the user's id, as in ``tongji-``: ids of different issuers stay apart."""
    claims: Claims = field(default_factory=Claims)
    """Which claim says what."""
    required_claims: tuple[str, ...] = ()
    """Claims that must be there beside iss, aud, exp and iat."""
    clock_skew_s: int = 30
    """How far clocks may differ. 0 to 60."""
    max_token_age_s: int = 86_400
    """How long after ``iat`` a token is good at most, whatever its ``exp`` says. 60 to 604,800 (a week)."""
    provision: bool = False
    """Make a user who is not there yet, a researcher; else an administrator creates users before they come."""

    def __post_init__(self) -> None:
        require_secure("issuer", self.issuer)
        if self.jwks_url:
            require_secure("jwks_url", self.jwks_url)
        if not self.audience:
            raise ValueError("audience: it is missing; give this platform's name at the issuer.")
        self._check_tokens()
        self._check_people()
        _bounded("clock_skew_s", self.clock_skew_s, 0, MAX_SKEW_S)
        _bounded("max_token_age_s", self.max_token_age_s, 60, 604_800)

    def _check_tokens(self) -> None:
        for name in self.algorithms or ("",):
            if name not in ALGORITHMS:
                raise ValueError(f"algorithms: {name!r} is not taken; there are {', '.join(ALGORITHMS)}.")
        types = {name.lower() for name in self.token_types}
        if not types or types - {"at+jwt", "jwt"}:
            raise ValueError("token_types: give at+jwt, JWT or both.")
        if "jwt" in types and self.audience == self.client_id:
            raise ValueError(
                "audience: with token_types JWT it must differ from client_id, or the ID tokens made for that client would be "
                "access tokens as well."
            )

    def _check_people(self) -> None:
        if not self.institutions and not self.platform_users:
            raise ValueError("institutions: it is empty; name those whose users the issuer may speak for.")
        for name, value in self.role_names.items():
            if value not in ROLES:
                raise ValueError(f"role_names: {name!r} is mapped to {value!r}; there are {', '.join(ROLES)}.")
        if not self.claims.user:
            raise ValueError("claims.user: it is missing; say which claim is the user.")
        if self.provision and not self.claims.institution and len(self.institutions) != 1:
            raise ValueError(
                "provision: name claims.institution, or one institution only, to say where new users belong."
            )

    @property
    def home(self) -> str:
        """The institution of a token that names none; empty when that cannot be said."""
        return self.institutions[0] if len(self.institutions) == 1 and not self.platform_users else ""


@dataclass(frozen=True)
class Oidc:
    """OpenID Connect: whose tokens are taken beside API keys."""

    issuers: tuple[Issuer, ...] = ()
    """Each with the keys below. At most 64."""

    def __post_init__(self) -> None:
        names = [issuer.issuer for issuer in self.issuers]
        if len(names) > MAX_ISSUERS:
            raise ValueError(f"issuers: there are {len(names)}; give at most {MAX_ISSUERS}.")
        if len(set(names)) < len(names):
            raise ValueError("issuers: an issuer stands there twice.")


NO_OIDC = Oidc()


def require_secure(name: str, url: str) -> None:
    """Raise ``ValueError`` unless keys fetched from the URL are those of its host: https, or this machine itself."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.username or parts.fragment or not url.isascii() or not url.isprintable() or len(url) > 2_048:
        raise ValueError(f"{name}: {url[:200]!r} is not a URL; write https://HOST/….")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise ValueError(f"{name}: {url} is not https; others could put keys of their own in its place.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bounded(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value} is out of range; give {low:,} to {high:,}.")
