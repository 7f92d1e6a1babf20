"""What errors of an HTTP connection, and statuses, mean for the one who asked."""

from __future__ import annotations

import http.client
import json
import socket
import ssl

from infi_edge.executors.credentials import quoted
from infi_edge.executors.endpoint import Endpoint
from infi_edge.executors.http_connection import HungUp
from infi_edge.executors.link import LinkError

STALE = (
    http.client.RemoteDisconnected,
    ConnectionResetError,
    BrokenPipeError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)
"""What a kept connection says that the server has closed before it read our request."""

_UNTRUSTED = (18, 19, 20, 21)
"""Of X509_V_ERR_...: self-signed, or signed by somebody unknown."""


def broken(error: Exception, endpoint: Endpoint, token: str | None) -> LinkError:
    """Return what to raise for an error of the connection."""
    where = str(endpoint)
    denial = tls_denial(error, endpoint)
    if denial is not None:
        return denial
    if isinstance(error, TimeoutError):
        return LinkError("link", f"{where} gave no answer in time")
    if isinstance(error, (socket.gaierror, UnicodeError)):  # or one that can be no name
        return LinkError("link", f"{where}: the host's name is not known; check it")
    if isinstance(error, ConnectionRefusedError):
        return LinkError(
            "link", f"{where}: nothing answers there (connection refused); start the server, or "
            "check host and port"
        )  # fmt: skip
    if isinstance(error, (*STALE, http.client.IncompleteRead, ConnectionError)):
        return LinkError("link", f"{where}: the connection broke before the answer was whole")
    if isinstance(error, OSError):
        why = (error.strerror or str(error)).lower()
        return LinkError("link", f"{where}: there is no way there ({why}); check the network")
    told = quoted(str(error), token, 60)
    return LinkError("answer", f"{where} answered what is no HTTP: {told}")


def tls_denial(error: Exception | None, endpoint: Endpoint) -> LinkError | None:
    """Return what to raise for what TLS has against a connection; None: it is something else."""
    if not isinstance(error, ssl.SSLError):
        return None
    reason, why = getattr(error, "reason", None) or "", ""
    if isinstance(error, HungUp):
        why = "it hangs up after the handshake; it may want a client certificate (cert_file)"
    elif isinstance(error, ssl.SSLCertVerificationError):
        why = f"its certificate is not accepted ({error.verify_message.rstrip('.')})"
        if error.verify_code in _UNTRUSTED:
            why += "; set ca_file to the certificate of who has signed it"
    elif "ALERT" in reason:
        what = reason.partition("ALERT_")[2].replace("_", " ").lower()
        why = f"it refuses our certificate ({what}); set cert_file and key_file"
    elif reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        why = f"it does not speak TLS there; use {endpoint.scheme[:-1]}://"
    return LinkError("denied", f"{endpoint}: {why}") if why else None


def refused(status: int, content: bytes, endpoint: Endpoint, token: str | None) -> LinkError:
    """Return what to raise for a status that is none of success."""
    where, told = str(endpoint), _told(content, token)
    if status in (401, 403):
        return LinkError("denied", f"{where} refuses us ({status}); set token_file or token_env")
    if status == 404 or (status == 400 and "unknown model" in told.lower()):
        return LinkError("missing", f"{where}: the server has no such model or version: {told}")
    if status in (408, 425, 429, 502, 503, 504):
        return LinkError("link", f"{where} cannot answer now ({status}): {told}")
    if status < 400:
        return LinkError("missing", f"{where} is elsewhere ({status}); give its new address")
    if status >= 500:
        return LinkError("failed", f"{where}: the server failed ({status}): {told}")
    return LinkError("answer", f"{where}: the server refused this ({status}): {told}")


def _told(content: bytes, token: str | None) -> str:
    """The server's own words."""
    text = content.decode("utf-8", "replace")
    try:
        told = json.loads(content)
        text = str(told.get("error") or told.get("detail") or text)
    except (ValueError, AttributeError, RecursionError):
        pass
    return quoted(text, token) or "no reason given"
