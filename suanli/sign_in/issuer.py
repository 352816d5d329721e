"""An OpenID provider as the command line sees it: discovery, the device flow (RFC 8628), refreshing (RFC 6749). Blocks."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import urlencode, urlsplit

from suanli.errors import ConfigurationError, Unauthenticated, Unavailable

_TIMEOUT_S: Final = 15.0
_MAX_BYTES: Final = 256 * 1024
_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_MIN_INTERVAL_S: Final = 1
_MAX_INTERVAL_S: Final = 60
_MAX_WAIT_S: Final = 1_800
_SLOW_DOWN_S: Final = 5  # RFC 8628, section 3.5


@dataclass(frozen=True)
class Tokens:
    """What an issuer gave. ``expire_ms`` is 0 when it did not say; ``refresh_token`` is empty when there is none."""

    access_token: str
    refresh_token: str
    expire_ms: int


@dataclass(frozen=True)
class DeviceCode:
    """What a person is to do: open ``url`` and confirm ``user_code``. ``complete_url`` holds the code already, or is empty."""

    device_code: str
    user_code: str
    url: str
    complete_url: str
    interval_s: int
    lasts_s: int


class Provider:
    """An issuer and a public client of it. Raises ``SuanliError`` when it cannot be reached or makes no sense."""

    def __init__(self, issuer: str, client_id: str) -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._metadata: dict[str, Any] = {}

    def begin(self, scopes: tuple[str, ...]) -> DeviceCode:
        """Ask for a code (RFC 8628, section 3.1)."""
        status, answer = self._post("device_authorization_endpoint", {"scope": " ".join(scopes)})
        if status != http.client.OK:
            _refused(self._issuer, answer)
        complete = answer.get("verification_uri_complete")
        try:
            code = DeviceCode(
                _text(answer, "device_code"),
                _text(answer, "user_code"),
                _text(answer, "verification_uri"),
                complete if isinstance(complete, str) else "",
                min(max(int(answer.get("interval", 5)), _MIN_INTERVAL_S), _MAX_INTERVAL_S),
                min(int(answer["expires_in"]), _MAX_WAIT_S),
            )
        except (KeyError, TypeError, ValueError):
            raise Unavailable(f"{self._issuer} gave no device code that can be used.", reason="ISSUER_ANSWER") from None
        for shown in (code.url, code.complete_url):
            if shown and urlsplit(shown).scheme not in ("https", "http"):
                raise Unavailable(f"{self._issuer} gave no web page to confirm at.", reason="ISSUER_ANSWER")
        return code

    def wait(
        self, code: DeviceCode, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> Tokens:
        """Ask until the person has confirmed (RFC 8628, sections 3.4 and 3.5). ``Unauthenticated`` when they refuse or are too late."""
        interval_s, deadline = code.interval_s, clock() + code.lasts_s
        while True:
            sleep(interval_s)
            if clock() > deadline:
                raise Unauthenticated("Nobody confirmed in time; run 'suanli login' again.", reason="LOGIN_EXPIRED")
            try:
                status, answer = self._post(
                    "token_endpoint", {"grant_type": _DEVICE_GRANT, "device_code": code.device_code}
                )
            except Unavailable:
                # RFC 8628, section 3.5: ask less often when nobody answers.
                interval_s = min(2 * interval_s, _MAX_INTERVAL_S)
                continue
            if status == http.client.OK:
                return self._tokens(answer)
            error = answer.get("error")
            if error == "slow_down":
                interval_s += _SLOW_DOWN_S
            elif error != "authorization_pending":
                _refused(self._issuer, answer)

    def refresh(self, refresh_token: str) -> Tokens:
        """New tokens for a refresh token (RFC 6749, section 6). ``Unauthenticated`` when it is good no more."""
        status, answer = self._post("token_endpoint", {"grant_type": "refresh_token", "refresh_token": refresh_token})
        if status != http.client.OK:
            _refused(self._issuer, answer)
        tokens = self._tokens(answer)
        return tokens if tokens.refresh_token else Tokens(tokens.access_token, refresh_token, tokens.expire_ms)

    def revoke(self, token: str) -> None:
        """Tell the issuer that a refresh token is no longer needed (RFC 7009), where it listens to that."""
        if isinstance(self._discover().get("revocation_endpoint"), str):
            self._post("revocation_endpoint", {"token": token, "token_type_hint": "refresh_token"})

    def _tokens(self, answer: Mapping[str, Any]) -> Tokens:
        try:
            token, refresh = _text(answer, "access_token"), answer.get("refresh_token") or ""
            if not token.isascii() or not token.isprintable() or not isinstance(refresh, str):
                raise ValueError
            lasts_s = int(answer.get("expires_in") or 0)
        except (KeyError, TypeError, ValueError):
            raise Unavailable(f"{self._issuer} gave no token that can be used.", reason="ISSUER_ANSWER") from None
        return Tokens(token, refresh, time.time_ns() // 1_000_000 + 1000 * lasts_s if lasts_s > 0 else 0)

    def _discover(self) -> dict[str, Any]:
        if not self._metadata:
            url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            status, found = _ask("GET", url, "")
            # RFC 8414, section 3.3: another's document would send codes and tokens to another.
            if status != http.client.OK or found.get("issuer") != self._issuer:
                raise Unavailable(f"{url} is not the discovery document of {self._issuer}.", reason="ISSUER_ANSWER")
            self._metadata = found
        return self._metadata

    def _post(self, endpoint: str, fields: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        url = self._discover().get(endpoint)
        if not isinstance(url, str):
            raise Unavailable(f"{self._issuer} offers no {endpoint}; store an API key instead.", reason="ISSUER_ANSWER")
        return _ask("POST", url, urlencode({**fields, "client_id": self._client_id}))


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer[name]
    if not isinstance(value, str) or not value:
        raise ValueError(name)
    return value


def _refused(issuer: str, answer: Mapping[str, Any]) -> NoReturn:
    error = str(answer.get("error") or "an error without a name")[:100]
    known = {"access_denied": "it was refused there", "expired_token": "nobody confirmed in time"}
    raise Unauthenticated(
        f"{issuer} gives no token: {known.get(error, error)}. Run 'suanli login' again.", reason="LOGIN_REFUSED"
    )


def _ask(method: str, url: str, body: str) -> tuple[int, dict[str, Any]]:
    """One request, without redirects or proxies, in plain text to this machine only. Gives status and JSON object."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    connection: http.client.HTTPConnection
    if host and parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=ssl.create_default_context())
    elif host in ("localhost", "127.0.0.1", "::1") and parts.scheme == "http":
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    else:
        raise ConfigurationError(f"{url[:200]!r} is not an https address; tokens go to no other.", reason="BAD_ISSUER")
    query = f"?{parts.query}" if parts.query else ""
    headers = {"Accept": "application/json"}
    if body:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    try:
        connection.request(method, f"{parts.path or '/'}{query}", body or None, headers)
        response = connection.getresponse()
        text = response.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"{parts.scheme}://{parts.netloc} cannot be reached: {error}.", reason="ISSUER_UNREACHABLE"
        ) from None
    finally:
        connection.close()
    try:
        answer = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or response.status >= http.client.INTERNAL_SERVER_ERROR:
        raise Unavailable(
            f"{parts.scheme}://{parts.netloc} answers with status {response.status}.", reason="ISSUER_ANSWER"
        )
    return response.status, answer
