"""Who may read the page, and who may change something through it."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from infi_edge.config import LOCAL

log = logging.getLogger("infi_edge")

TRIES_PER_S = 3
SESSION_S = 7 * 24 * 3600
TOLD_AGAIN_S = 600.0

Environ = Mapping[str, Any]


class TooManyTries(Exception):
    """Wrong tokens came too fast: none is looked at for the moment."""


class Access:
    """Knows the token, and the session that stands for it in a browser's cookie."""

    def __init__(self, token: str | None) -> None:
        """token: None lets everyone in."""
        self._token = None if token is None else token.encode()
        # Nothing of the token is in it, and it ends with the process.
        self._session = secrets.token_urlsafe(32)
        self._lock = threading.Lock()
        self._wrong_s: deque[float] = deque(maxlen=TRIES_PER_S)
        self._told_s = -TOLD_AGAIN_S

    def is_known(self, environ: Environ) -> bool:
        """Whether a request comes with the token or a session. Raises TooManyTries."""
        if self._token is None:
            return True
        kind, _, given = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if kind.lower() == "bearer":
            return self.is_token(given.strip().encode("latin-1"))
        given = _cookie(environ)
        return hmac.compare_digest(given.encode(), self._session.encode())

    def is_token(self, given: bytes) -> bool:
        """Whether this is the token. Raises TooManyTries after TRIES_PER_S wrong ones in a second:
        of all callers together, as an address is easily changed."""
        assert self._token is not None
        with self._lock:
            now_s = time.monotonic()
            if len(self._wrong_s) == TRIES_PER_S and now_s - self._wrong_s[0] < 1.0:
                raise TooManyTries
            if hmac.compare_digest(given, self._token):
                return True
            self._wrong_s.append(now_s)
            tell = now_s - self._told_s >= TOLD_AGAIN_S
            if tell:
                self._told_s = now_s
        if tell:
            log.warning("web: a wrong token was given; look at who can reach the port")
        return False

    def cookie(self, environ: Environ) -> str:
        """Return the Set-Cookie header that opens a session."""
        attributes = f"Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Strict"
        return f"{_cookie_name(environ)}={self._session}; {attributes}"


def _cookie_name(environ: Environ) -> str:
    # Browsers send cookies to every port of a host: each daemon needs one of its own.
    return f"infi_edge_{environ['SERVER_PORT']}"


def _cookie(environ: Environ) -> str:
    try:
        morsel = SimpleCookie(str(environ.get("HTTP_COOKIE", ""))).get(_cookie_name(environ))
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def is_same_origin(environ: Environ) -> bool:
    """Whether a request that changes something was not started by another site's page.

    Browsers say so in Sec-Fetch-Site (only over https and on this machine) or Origin, which a page
    cannot forge; what sends neither is no browser, and carries no one's cookie by accident.
    """
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return bool(site == "same-origin")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or str(origin).lower().partition("://")[2] == _host(environ)


def is_local_host(environ: Environ) -> bool:
    """Whether the Host header names this machine: a page of another name that resolves to
    127.0.0.1 (DNS rebinding) is refused."""
    host, colon, port = _host(environ).rpartition(":")
    if not colon or not port.isdigit():
        host = _host(environ)
    return host.removeprefix("[").removesuffix("]") in LOCAL


def _host(environ: Environ) -> str:
    return str(environ.get("HTTP_HOST", "")).lower()
