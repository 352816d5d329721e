"""The public keys of an issuer: fetched when needed, kept, exchanged as the issuer exchanges them (RFC 7517)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK

from scheduler.domain.errors import Unavailable
from scheduler.identity.fetching import FetchError
from scheduler.identity.issuers import Issuer

log = logging.getLogger(__name__)
REFRESH_MS = 600_000
"""Keys that are older are fetched again beside the calls that use them."""
REFETCH_MS = 60_000
"""An unknown key has the set fetched again at most so often, whoever asks."""
RETRY_MS = 10_000
"""The same while there are no keys at all."""
STALE_MS = 86_400_000
"""How long keys are good while the issuer cannot be reached."""
MAX_KEYS = 100
MIN_RSA_BITS = 2048
_DISCOVERY = "/.well-known/openid-configuration"
_TYPES: Mapping[str, str] = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}

Fetch = Callable[[str], dict[str, Any]]
"""Gets the JSON object at a URL, blocking; raises ``FetchError``."""


class Key(NamedTuple):
    """A public key, for one algorithm only. Two of the same bytes are equal."""

    kid: str
    algorithm: str
    der: bytes
    key: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self[:3] == other[:3]

    def __hash__(self) -> int:
        return hash(self[:3])


class KeySet:
    """The keys of one issuer. For one event loop; fetches run in threads, one at a time."""

    def __init__(self, issuer: Issuer, now_ms: Callable[[], int], fetch: Fetch) -> None:
        self._issuer = issuer
        self._now_ms = now_ms
        self._fetch = fetch
        self._keys: dict[tuple[str, str], Key] = {}
        self._fetched_ms = 0
        self._tried_ms = 0
        self._task: asyncio.Task[None] | None = None

    async def find(self, kid: str, algorithm: str) -> Key | None:
        """The key of this id for this algorithm; None when the issuer has none. Raises ``Unavailable`` when nobody knows."""
        found = self.known(kid, algorithm)
        if found is None and self._now_ms() - self._tried_ms >= (REFETCH_MS if self._keys else RETRY_MS):
            self._begin()
        if found is None and self._task is not None:
            await asyncio.shield(self._task)
            found = self.known(kid, algorithm)
        if found is None and not self._good():
            raise Unavailable(
                f"The keys of {self._issuer.issuer} cannot be fetched; try again in a minute, or use an API key.",
                reason="ISSUER_UNREACHABLE",
            )
        return found

    def known(self, kid: str, algorithm: str) -> Key | None:
        """A key that is at hand and not too old."""
        if not self._good():
            return None
        if self._now_ms() - self._fetched_ms >= REFRESH_MS and self._now_ms() - self._tried_ms >= REFETCH_MS:
            self._begin()
        return self._keys.get((kid, algorithm))

    def _good(self) -> bool:
        return bool(self._fetched_ms) and self._now_ms() - self._fetched_ms < STALE_MS

    def _begin(self) -> None:
        if self._task is None:
            self._tried_ms = self._now_ms()
            self._task = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        try:
            document = await asyncio.to_thread(self._read)
            self._keys = usable_keys(document, self._issuer.algorithms)
            self._fetched_ms = self._now_ms()
        except FetchError as error:
            log.warning("the keys of %s could not be fetched: %s", self._issuer.issuer, error)
        finally:
            self._task = None

    def _read(self) -> dict[str, Any]:
        return self._fetch(self._issuer.jwks_url or self._discovered())

    def _discovered(self) -> str:
        """The place of the keys that the issuer names (OpenID Connect Discovery 1.0, RFC 8414)."""
        document = self._fetch(self._issuer.issuer.rstrip("/") + _DISCOVERY)
        # RFC 8414, section 3.3: else one issuer could put its keys in another's place.
        if document.get("issuer") != self._issuer.issuer:
            raise FetchError(f"its discovery document is for {str(document.get('issuer'))[:200]!r}")
        url = document.get("jwks_uri")
        if not isinstance(url, str):
            raise FetchError("its discovery document names no jwks_uri")
        return url


def usable_keys(document: Mapping[str, Any], algorithms: tuple[str, ...]) -> dict[tuple[str, str], Key]:
    """The keys of a JWK set that may verify a signature, by id and algorithm. Others in it are passed over.

    Raises ``FetchError`` when it is no JWK set, or one of more than 100 keys.
    """
    entries = document.get("keys")
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise FetchError(f"its JWK set has no list of at most {MAX_KEYS} keys")
    found: dict[tuple[str, str], Key] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or entry.get("use", "sig") != "sig":
            continue
        operations = entry.get("key_ops")
        if operations is not None and (not isinstance(operations, list) or "verify" not in operations):
            continue
        for algorithm in algorithms:
            key = _key(entry, algorithm)
            if key is not None:
                found.setdefault((key.kid, algorithm), key)
    return found


def _key(entry: dict[str, Any], algorithm: str) -> Key | None:
    """The entry as a key for this algorithm; None when it is not one, or is too weak."""
    if entry.get("kty") != _TYPES[algorithm] or entry.get("alg", algorithm) != algorithm:
        return None
    try:
        key = PyJWK.from_dict({**entry, "alg": algorithm}).key
    except Exception:
        # What an issuer writes there is not ours: a key that cannot be read is none.
        return None
    strong = (
        (isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS)
        or (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1))
        or isinstance(key, Ed25519PublicKey)
    )
    if not strong:
        return None
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key(entry["kid"], algorithm, der, key)
