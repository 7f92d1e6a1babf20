"""What a server asks for: certificates and a bearer token; never in a message or a log."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from infi_edge.errors import ConfigError
from infi_edge.executors.endpoint import Endpoint

SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian keeps whom the system believes; gRPC brings a list of its own otherwise."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """ca_file: whom to believe, instead of the system's. cert_file, key_file: who we are (PEM).

    token_file, token_env: where a bearer token is; it is read anew for every request, as others
    replace it while we run.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    token_file: str | None = None
    token_env: str | None = None

    def check(self, endpoint: Endpoint) -> None:
        """Raise ConfigError for what cannot be used, or would go out in the clear."""
        secure = "grpcs" if endpoint.is_grpc else "https"
        for name in ("ca_file", "cert_file", "key_file"):
            path = getattr(self, name)
            if path is not None:
                if not endpoint.is_secure:
                    raise ConfigError(
                        f"{name} is given, but {endpoint} is not encrypted; use {secure}://"
                    )
                read_file(path, name)
        if self.key_file and not self.cert_file:
            raise ConfigError("key_file is given without cert_file; give both")
        if self.token_file and self.token_env:
            raise ConfigError("give token_file or token_env, not both")
        has_token = self.token_file is not None or self.token_env is not None
        if has_token and not endpoint.is_secure and not _is_here(endpoint.host):
            raise ConfigError(
                f"a token would go to {endpoint} unencrypted; use {secure}://, or leave the token "
                "out"
            )
        self.token()

    def context(self) -> ssl.SSLContext:
        """Return what TLS is spoken with. Raises ConfigError for files that are no certificates."""
        name = "ca_file"
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            # From Python 3.13 on it refuses what others take: authorities made with plain openssl.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if self.cert_file is not None:
                name = "cert_file" if self.key_file is None else "cert_file or key_file"
                # Without a password given, OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            path = self.ca_file if name == "ca_file" else self.cert_file
            why = getattr(error, "reason", None) or str(error)
            raise ConfigError(
                f"{name} {path} cannot be used: {why}; give PEM files, the key without a password"
            ) from error
        return context

    def pem(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return (roots, key, certificate) for gRPC; None: not given. Raises ConfigError."""
        roots = key = certificate = None
        if self.ca_file is not None:
            roots = read_file(self.ca_file, "ca_file")
        elif os.path.exists(SYSTEM_ROOTS):
            roots = read_file(SYSTEM_ROOTS, "ca_file")
        if self.cert_file is not None:
            certificate = read_file(self.cert_file, "cert_file")
            key = read_file(self.key_file or self.cert_file, "key_file")
        return roots, key, certificate

    def token(self) -> str | None:
        """Return the bearer token, or None. Raises ConfigError if it is named and not there."""
        if self.token_file is not None:
            token = read_file(self.token_file, "token_file").decode("utf-8", "replace").strip()
            where = self.token_file
        elif self.token_env is not None:
            token, where = os.environ.get(self.token_env, "").strip(), f"${self.token_env}"
        else:
            return None
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(f"{where} holds no bearer token; put one line without spaces there")
        return token


def quoted(text: str, token: str | None, most: int = 200) -> str:
    """Return a server's words on one line, short, without the token it may have echoed."""
    hidden = text.replace(token, "***") if token else text
    return " ".join(hidden.split())[:most]


def read_file(path: str, name: str) -> bytes:
    """Return the content of a file of secrets. Raises ConfigError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError(f"{name} {path} cannot be read: {why}") from error


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
