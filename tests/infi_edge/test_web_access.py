"""The page's server: whom it lets in, and what it cannot start with."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from wsgiref.util import setup_testing_defaults

import pytest

from infi_edge.config import WebConfig
from infi_edge.errors import ConfigError
from infi_edge.web.access import TRIES_PER_S
from infi_edge.web.app import App
from infi_edge.web.server import WebServer
from tests.pretend_control import PretendControl
from tests.web_client import JSON, ask, post, until

TOKEN = "a-token-of-the-tests"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def control() -> PretendControl:
    return PretendControl()


@pytest.fixture
def site(control: PretendControl) -> Iterator[WebServer]:
    """The server, open to all of this machine, with pictures."""
    server = WebServer(control, WebConfig(bind="127.0.0.1:0", pictures=True))
    server.start()
    yield server
    server.close()


@pytest.fixture
def guarded(control: PretendControl, tmp_path: Path) -> Iterator[WebServer]:
    """The server that demands a token."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    web = WebConfig(bind="127.0.0.1:0", token_file=str(tmp_path / "token"))
    server = WebServer(control, web)
    server.start()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8765", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8765", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("evil.example:8765", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("10.0.0.5", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_bent_to_this_machine_is_refused(
    site: WebServer, host: str, status: int
) -> None:
    assert ask(site, "/api/status", headers={"Host": host}).status == status
    assert ask(site, "/", headers={"Host": host}).status == status


def test_bound_wider_it_goes_by_any_name(control: PretendControl) -> None:
    app = App(control, TOKEN, pictures=False, local=False)
    environ: dict[str, object] = {
        "HTTP_HOST": "yard.lan:8765",
        "HTTP_AUTHORIZATION": f"Bearer {TOKEN}",
    }
    environ["PATH_INFO"] = "/api/status"
    setup_testing_defaults(environ)
    told: list[str] = []
    app(environ, lambda status, headers: told.append(status))
    assert told == ["200 OK"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/status"),
        ("GET", "/api/history"),
        ("GET", "/metrics"),
        ("GET", "/page.js"),
        ("GET", "/api/source/yard/picture"),
        ("POST", "/api/source/yard/enabled"),
        ("GET", "/nothing"),
    ],
)
def test_without_the_token_nothing_is_told(
    guarded: WebServer, control: PretendControl, method: str, path: str
) -> None:
    got = ask(guarded, path, method, '{"enabled": false}' if method == "POST" else None, JSON)
    assert got.status == 401
    assert got.headers["WWW-Authenticate"] == "Bearer"
    assert b"yard" not in got.body
    assert control.changed == []


def test_without_the_token_the_page_is_a_login(guarded: WebServer) -> None:
    got = ask(guarded, "/")
    assert got.status == 401
    assert b'action="/login"' in got.body
    assert TOKEN.encode() not in got.body
    # Without one, browsers send the form's Origin as null.
    assert got.headers["Referrer-Policy"] == "same-origin"
    assert ask(guarded, "/page.css").status == 200


def test_the_bearer_token_opens_everything(guarded: WebServer, control: PretendControl) -> None:
    for path in ("/", "/api/status", "/metrics"):
        assert ask(guarded, path, headers=BEARER).status == 200
    assert ask(guarded, "/metrics", headers={"Authorization": f"bearer  {TOKEN} "}).status == 200
    got = post(guarded, "/api/source/yard/enabled", {"enabled": False}, **BEARER)
    assert got.status == 200
    assert control.changed == [("yard", False)]


def test_the_login_gives_a_session_that_is_not_the_token(guarded: WebServer) -> None:
    got = ask(guarded, "/login", "POST", f"token={TOKEN}", {**FORM, "Origin": guarded.address})
    assert (got.status, got.headers["Location"]) == (303, "/")
    cookie = got.headers["Set-Cookie"]
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    session = {"Cookie": f"other=1; {cookie.partition(';')[0]}"}
    assert ask(guarded, "/api/status", headers=session).status == 200
    assert ask(guarded, "/", headers=session).status == 200
    name, _, value = cookie.partition(";")[0].partition("=")
    for wrong in (f"{name}={value[:-1]}", f"{name}=", f"{name}={TOKEN}", "a=b", ";;=", "\xff"):
        assert ask(guarded, "/api/status", headers={"Cookie": wrong}).status == 401


def test_a_session_ends_with_the_server(guarded: WebServer, control: PretendControl) -> None:
    environ: dict[str, object] = {"HTTP_HOST": "localhost"}
    setup_testing_defaults(environ)
    first, second = (App(control, TOKEN, pictures=False)._access.cookie(environ) for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (FORM, "token=wrong", 403),
        (FORM, "", 403),
        (FORM, "a=1&" * 20, 400),
        (FORM, "token=" + "\xff" * 20, 403),
        (JSON, "{}", 415),
        ({**FORM, "Origin": "http://evil.example"}, f"token={TOKEN}", 403),
    ],
)
def test_a_wrong_login_opens_nothing(
    guarded: WebServer, headers: dict[str, str], body: str, status: int
) -> None:
    got = ask(guarded, "/login", "POST", body.encode("latin-1"), headers)
    assert got.status == status
    assert "Set-Cookie" not in got.headers


def test_tokens_are_not_tried_fast(guarded: WebServer) -> None:
    def bearer(token: str) -> int:
        return ask(guarded, "/metrics", headers={"Authorization": f"Bearer {token}"}).status

    began_s = time.monotonic()
    answers = [bearer("wrong") for _ in range(12)]
    took_s = time.monotonic() - began_s
    assert answers.count(401) <= TRIES_PER_S * (int(took_s) + 1)
    if took_s < 0.9:
        assert bearer(TOKEN) == 429
        assert ask(guarded, "/login", "POST", f"token={TOKEN}", FORM).status == 429
    assert until(lambda: bearer(TOKEN) == 200)


def test_a_wrong_token_is_logged_once_and_never_whole(
    guarded: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        ask(guarded, "/login", "POST", "token=nearly-the-token", FORM)
    told = [record for record in caplog.records if "wrong token" in record.getMessage()]
    assert len(told) == 1
    assert "nearly" not in caplog.text


def test_pictures_are_off_unless_switched_on(guarded: WebServer) -> None:
    got = ask(guarded, "/api/source/yard/picture", headers=BEARER)
    assert got.status == 404
    assert "web.pictures" in str(got.json["error"])
    assert ask(guarded, "/api/status", headers=BEARER).json["pictures"] is False


def refused(web: WebConfig, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WebServer(PretendControl(), web).start()
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "  \n", "two words\n"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    web = WebConfig(bind="127.0.0.1:0", token_file=str(tmp_path / "token"))
    refused(web, "must hold one word")


def test_a_token_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    refused(
        WebConfig(bind="127.0.0.1:0", token_file=str(tmp_path / "no")), "cannot be read: No such"
    )


def test_bound_wider_it_demands_a_token() -> None:
    refused(WebConfig(bind="0.0.0.0:0"), "give web.token_file")


def test_a_taken_port_is_refused(site: WebServer) -> None:
    refused(WebConfig(bind=urlsplit(site.address).netloc), "is taken by another program")


@pytest.mark.parametrize(
    ("bind", "words"),
    [("192.0.2.7:0", "is no address of this machine"), ("no-such.invalid:0", "is not known")],
)
def test_a_foreign_host_is_refused(tmp_path: Path, bind: str, words: str) -> None:
    (tmp_path / "token").write_text(TOKEN)
    refused(WebConfig(bind=bind, token_file=str(tmp_path / "token")), words)


@pytest.mark.parametrize("package", ["waitress", "prometheus_client"])
def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("infi_edge.metrics", "infi_edge.web.app"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    refused(WebConfig(bind="127.0.0.1:0"), "pip install 'infi-edge[web]'")
