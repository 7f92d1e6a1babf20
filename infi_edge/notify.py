"""Tell systemd how the service is (sd_notify): ready, reloading, alive, stopping.

The package sdnotify was looked at: it swallows every exception, connects only once, blocks when
the receiver is slow, drops a status that is not Latin-1, and knows no watchdog; this is shorter.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger("infi_edge")


class Notifier:
    """Sends the service's state to systemd; does nothing where no one listens. Any thread."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read from it."""
        address = environment.get("NOTIFY_SOCKET", "")
        # An address that begins with @ is in the abstract namespace, which has no files.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        self.watchdog_s = _watchdog_s(environment)
        """Seconds within which `watchdog` must be called again; None: no one waits for it."""
        self._told = False

    def ready(self, status: str = "") -> bool:
        """Say that the service is up, or up again after `reloading`. Return whether it was sent."""
        return self._send("READY=1", *_status(status))

    def reloading(self) -> bool:
        """Say that the configuration is read again; `ready` ends it."""
        # systemd compares the time with its own of the signal (Type=notify-reload).
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        """Say that the service ends now."""
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """Show one line in `systemctl status`."""
        return self._send(*_status(text))

    def watchdog(self) -> bool:
        """Say that there is progress; at least twice in `watchdog_s`."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if self._socket is None or not lines:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:  # systemd is restarted, or too slow: the next message tells it
            if not self._told:
                log.warning("systemd cannot be told how the service is: %s", error.strerror)
            self._told = True
            return False
        self._told = False
        return True


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None  # it was meant for another process
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None
