"""The status page as a WSGI application: what is read by GET, and the few things POST changes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs

import msgspec

from infi_edge.errors import ConfigError
from infi_edge.metrics import Metrics
from infi_edge.status import Control
from infi_edge.web.access import (
    Access,
    Environ,
    TooManyTries,
    is_local_host,
    is_same_origin,
)
from infi_edge.web.view import history_json, json_bytes, picture_jpeg, status_json

log = logging.getLogger("infi_edge")

MAX_BODY_BYTES = 4096

HTML = "text/html; charset=utf-8"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

_SCRIPT = "text/javascript; charset=utf-8"
_FILES = {
    "page.html": HTML,
    "page.js": _SCRIPT,
    "source.js": _SCRIPT,
    "learned.js": _SCRIPT,
    "plot.js": _SCRIPT,
    "format.js": _SCRIPT,
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_PUBLIC = ("/page.css", "/icon.svg")
"""What the login page is made of."""

Headers = list[tuple[str, str]]
StartResponse = Callable[[str, Headers], Any]
Body = TypeVar("Body", bound=msgspec.Struct)

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
_HEADERS: Headers = [
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
]


class EnabledBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What POST .../enabled takes."""

    enabled: bool


class TargetBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What POST .../target takes. target: a share, as in the bundle's table."""

    measure: Literal["accuracy", "recall"]
    target: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One response. allow: the methods of a 405. cookie: a Set-Cookie header.
    referrer: whether the browser may tell this page's address to this server."""

    status: str
    content_type: str
    body: bytes
    allow: str = ""
    cookie: str = ""
    location: str = ""
    referrer: bool = False


class Refusal(Exception):
    """Something that is not done; it becomes an answer of one sentence."""

    def __init__(self, status: str, sentence: str, allow: str = "") -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.allow = status, sentence, allow


class App:
    """The WSGI callable. Any thread may call it."""

    def __init__(
        self, control: Control, token: str | None, pictures: bool, local: bool = True
    ) -> None:
        """token: who has none is not let in; None: no one needs one. pictures: show what sources
        see. local: bound to this machine only, so that no other Host may be meant."""
        self._control, self._pictures, self._local = control, pictures, local
        self._access = Access(token)
        self._failed = False
        self._metrics = Metrics(control)
        self._files = {f"/{name}": _file(name, kind) for name, kind in _FILES.items()}
        self._login_form = (resources.files("infi_edge.web") / "login.html").read_bytes()
        self._gets: dict[str, Callable[[Environ], Answer]] = {
            "/api/status": lambda _: _json(status_json(control.status(), pictures)),
            "/api/history": lambda _: _json(history_json(control.status())),
            "/metrics": self._exposition,
        }
        self._posts: dict[str, Callable[[str, bytes], Answer]] = {
            "enabled": self._set_enabled,
            "target": self._set_target,
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            answer = self._answer(environ)
        except TooManyTries:
            answer = _refusal("429 Too Many Requests", "Too many wrong tokens; wait a second.")
        except Refusal as refusal:
            answer = _refusal(refusal.status, refusal.sentence, refusal.allow)
        except Exception:  # a defect: the log has it once, a caller cannot fill it
            if not self._failed:
                self._failed = True
                log.exception("the page cannot answer")
            answer = _refusal("500 Internal Server Error", "This could not be answered.")
        headers = [("Content-Type", answer.content_type), *_HEADERS]
        headers.append(("Referrer-Policy", "same-origin" if answer.referrer else "no-referrer"))
        optional = {"Allow": answer.allow, "Set-Cookie": answer.cookie, "Location": answer.location}
        headers += [(name, value) for name, value in optional.items() if value]
        if answer.status.startswith("401"):
            headers.append(("WWW-Authenticate", "Bearer"))
        if not answer.status.startswith("204"):
            headers.append(("Content-Length", str(len(answer.body))))
        start_response(answer.status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: Environ) -> Answer:
        if self._local and not is_local_host(environ):
            raise Refusal("403 Forbidden", "This server goes by the name of localhost only.")
        path = str(environ["PATH_INFO"]).encode("latin-1").decode(errors="replace")
        if path == "/login":
            return self._login(environ)
        if path not in _PUBLIC and not self._access.is_known(environ):
            if path == "/":
                return self._login_page("401 Unauthorized")
            raise Refusal("401 Unauthorized", "Give the token: Authorization: Bearer TOKEN.")
        if path == "/":
            path = "/page.html"
        if path in self._files:
            _need_method(environ, "GET", "HEAD")
            return self._files[path]
        if path in self._gets:
            _need_method(environ, "GET", "HEAD")
            return self._gets[path](environ)
        match = re.fullmatch(r"/api/source/([^/]+)/(picture|enabled|target)", path)
        if match is None:
            raise Refusal("404 Not Found", "There is nothing here.")
        source, what = match.groups()
        post = self._posts.get(what)
        if post is None:
            _need_method(environ, "GET", "HEAD")
            return self._picture(self._known(source))
        body = _posted(environ, JSON)
        return post(self._known(source), body)

    def _known(self, source: str) -> str:
        if all(source != known.name for known in self._control.status().sources):
            raise Refusal("404 Not Found", "There is no source of this name.")
        return source

    def _exposition(self, environ: Environ) -> Answer:
        content_type, text = self._metrics.exposition(str(environ.get("HTTP_ACCEPT", "")))
        return Answer("200 OK", content_type, text)

    def _picture(self, source: str) -> Answer:
        if not self._pictures:
            raise Refusal("404 Not Found", "Pictures are off; web.pictures switches them on.")
        image = self._control.picture(source)
        if image is None:
            return Answer("204 No Content", "image/jpeg", b"")
        try:
            return Answer("200 OK", "image/jpeg", picture_jpeg(image))
        except ValueError:  # torn JPEG bytes of a camera
            return Answer("204 No Content", "image/jpeg", b"")

    def _set_enabled(self, source: str, body: bytes) -> Answer:
        given = _decoded(body, EnabledBody)
        try:
            self._control.set_enabled(source, given.enabled)
        except ConfigError as error:
            raise Refusal("400 Bad Request", str(error)) from error
        return _json(json_bytes({"enabled": given.enabled}))

    def _set_target(self, source: str, body: bytes) -> Answer:
        given = _decoded(body, TargetBody)
        if not 0 < given.target < 1:
            raise Refusal("400 Bad Request", "The target is a share, above 0 and below 1.")
        try:
            point = self._control.set_target(source, given.measure, given.target)
        except ConfigError as error:
            raise Refusal("400 Bad Request", str(error)) from error
        return _json(json_bytes(point))

    def _login(self, environ: Environ) -> Answer:
        if environ["REQUEST_METHOD"] == "GET":
            return Answer("303 See Other", HTML, b"", location="/")
        body = _posted(environ, FORM).decode("latin-1")
        try:
            given = parse_qs(body, max_num_fields=8).get("token", [""])[0].strip()
        except ValueError as error:
            raise Refusal("400 Bad Request", "The form has too many fields.") from error
        try:
            if self._access.is_known(environ) or self._access.is_token(given.encode()):
                cookie = self._access.cookie(environ)
                return Answer("303 See Other", HTML, b"", cookie=cookie, location="/")
        except TooManyTries:
            return self._login_page("429 Too Many Requests")
        return self._login_page("403 Forbidden")

    def _login_page(self, status: str) -> Answer:
        told = {"403 Forbidden": "That is not the token.", "401 Unauthorized": ""}
        sentence = told.get(status, "Too many wrong tokens; wait a second.")
        body = self._login_form.replace(b"{{sentence}}", sentence.encode())
        # Without a referrer, browsers would send the form's Origin as null.
        return Answer(status, HTML, body, referrer=True)


def _file(name: str, content_type: str) -> Answer:
    return Answer("200 OK", content_type, (resources.files("infi_edge.web") / name).read_bytes())


def _json(body: bytes) -> Answer:
    return Answer("200 OK", JSON, body)


def _refusal(status: str, sentence: str, allow: str = "") -> Answer:
    return Answer(status, JSON, json_bytes({"error": sentence}), allow=allow)


def _need_method(environ: Environ, *methods: str) -> None:
    if environ["REQUEST_METHOD"] not in methods:
        allow = ", ".join(methods)
        raise Refusal("405 Method Not Allowed", f"This takes {allow}.", allow)


def _posted(environ: Environ, content_type: str) -> bytes:
    _need_method(environ, "POST")
    if not is_same_origin(environ):
        raise Refusal("403 Forbidden", "This came from the page of another site.")
    given = str(environ.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    if given != content_type:
        raise Refusal("415 Unsupported Media Type", f"The body must be {content_type}.")
    length = str(environ.get("CONTENT_LENGTH") or "0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        raise Refusal("413 Content Too Large", f"The body may have {MAX_BODY_BYTES} bytes.")
    return bytes(environ["wsgi.input"].read(int(length)))


def _decoded(body: bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise Refusal("400 Bad Request", f"The body is wrong: {error}.") from error
