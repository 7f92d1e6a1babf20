"""A client of the page's server."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit

from infi_edge.web.server import WebServer

JSON = {"Content-Type": "application/json"}


class Got:
    """One answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.body)  # type: ignore[no-any-return]


def ask(
    site: WebServer,
    path: str,
    method: str = "GET",
    body: str | bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Got:
    place = urlsplit(site.address)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=30)
    with closing(connection):
        connection.request(method, path, body, headers or {})
        return Got(connection.getresponse())


def post(site: WebServer, path: str, body: object, **headers: str) -> Got:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(site, path, "POST", json.dumps(body), {**JSON, **given})


def dial(site: WebServer) -> socket.socket:
    place = urlsplit(site.address)
    return socket.create_connection((str(place.hostname), place.port or 0), timeout=30)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end_s = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True
