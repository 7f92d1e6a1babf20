"""Where a served model is: the text that --executor and `executor =` take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from infi_edge.errors import ConfigError

Scheme = Literal["grpc", "grpcs", "http", "https"]
_PORTS: dict[str, int] = {"grpc": 8001, "grpcs": 8001, "http": 80, "https": 443}
_FORMS = "grpc://HOST:8001/MODEL, grpcs://... or http(s)://HOST[:PORT][/PREFIX]/v2/models/MODEL"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model on a server. version: empty: the server's choice. prefix: of an HTTP path, or ""."""

    scheme: Scheme
    host: str
    port: int
    model: str
    version: str = ""
    prefix: str = ""

    @property
    def is_grpc(self) -> bool:
        """Whether it speaks gRPC, not HTTP."""
        return self.scheme in ("grpc", "grpcs")

    @property
    def is_secure(self) -> bool:
        """Whether it speaks TLS."""
        return self.scheme in ("grpcs", "https")

    @property
    def authority(self) -> str:
        """HOST:PORT, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        path = f"/{self.model}" if self.is_grpc else f"{self.prefix}/v2/models/{self.model}"
        version = f"/versions/{self.version}" if self.version else ""
        return f"{self.scheme}://{self.authority}{path}{version}"


def is_endpoint(text: str) -> bool:
    """Whether a text names a served model and not a file or a callable."""
    return re.match(r"(grpcs?|https?)://", text) is not None


def parse_endpoint(text: str) -> Endpoint:
    """Read an executor's URL. Raises ConfigError, without the credentials that may be in it."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"the executor's address is no URL ({error}); use {_FORMS}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "an executor's address holds no user or password; give a bearer token in token_file "
            "or token_env"
        )
    if parts.scheme not in _PORTS or not host:
        raise ConfigError(f"executor {text!r} is not understood; use {_FORMS}")
    if parts.query or parts.fragment:
        raise ConfigError(f"executor {text!r} has a ? or # in it; use {_FORMS}")
    names = [unquote(part) for part in parts.path.split("/") if part]
    prefix = ""
    if parts.scheme in ("http", "https"):
        found = [i for i in range(len(names) - 2) if names[i : i + 2] == ["v2", "models"]]
        if not found:
            raise ConfigError(f"executor {text!r} has no /v2/models/MODEL; use {_FORMS}")
        prefix = "".join(f"/{name}" for name in names[: found[-1]])
        names = names[found[-1] + 2 :]
    version = ""
    if len(names) == 3 and names[1] == "versions":
        names, version = names[:1], names[2]
    good = len(names) == 1 and all(_NAME.fullmatch(n) for n in (*names, version or "1"))
    if not good:
        raise ConfigError(f"executor {text!r} does not name one model; use {_FORMS}")
    scheme: Scheme = parts.scheme  # type: ignore[assignment]
    return Endpoint(scheme, host, port or _PORTS[scheme], names[0], version, prefix)
