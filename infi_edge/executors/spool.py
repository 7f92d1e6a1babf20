"""A bounded queue of inputs that wait for a server, in memory or on disk.

SQLite keeps it: what it has said is stored is there after a power loss (WAL, synchronous FULL: a
card is only written while the link is down, so it may cost).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from infi_edge.capture.recorded import Encoding
from infi_edge.errors import ConfigError

Order = Literal["oldest", "newest"]
VERSION = "1"
ROW_BYTES = 256
"""What an input counts for beside its bytes."""
KEPT_DAMAGED = 3

_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS inputs (
    key INTEGER PRIMARY KEY AUTOINCREMENT, place INTEGER NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL, size INTEGER NOT NULL, number INTEGER NOT NULL,
    time_s REAL NOT NULL, at TEXT NOT NULL, encoding TEXT NOT NULL, why TEXT NOT NULL,
    data BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_place ON inputs (state, place);
"""


@dataclass(frozen=True, slots=True)
class Spooled:
    """An input that waits. key: the spool's own. at: its wall time. attempts: that have failed."""

    key: int
    index: int
    time_s: float
    at: str
    encoding: Encoding
    data: bytes | list[bytes]
    why: str
    attempts: int


class Spool:
    """Every input that was put is answered once, or counted: `put` is `done`, `evicted`,
    `dropped`, `uncertain`, `damaged`, or still here. Any thread may use it.

    counts: of this life of the process. sentence: what is wrong, or was at the start; else empty.
    """

    def __init__(
        self, path: Path | None, max_bytes: int, order: Order = "oldest", identity: str = ""
    ) -> None:
        """path: None: in memory. max_bytes: of all inputs. order: `oldest` first, then one that
        does not fit is refused; or `newest` first, then the oldest are evicted.

        A file that is damaged, or holds inputs for another model or filter (identity), is put
        aside. Raises ConfigError if another process has it open.
        """
        self.path, self.max_bytes, self.order = path, max_bytes, order
        self.counts: Counter[str] = Counter()
        self.sentence = ""
        self._lock = threading.Lock()
        self._size = self._length = 0
        self._identity = identity
        self._db = self._open()

    def __len__(self) -> int:
        return self._length

    @property
    def size_bytes(self) -> int:
        """What the inputs count for against max_bytes."""
        return self._size

    def put(
        self,
        index: int,
        time_s: float,
        at: str,
        encoding: Encoding,
        data: bytes | list[bytes],
        why: str,
    ) -> bool:
        """Keep an input; return whether there was room. Arguments: see Spooled."""
        blob = msgspec.msgpack.encode(data)
        size = len(blob) + ROW_BYTES
        with self._lock:
            try:
                if size > self.max_bytes or not self._make_room(size):
                    self.counts["refused"] += 1
                    self.sentence = "the queue is full"
                    return False
                self._db.execute(
                    "INSERT INTO inputs (place, state, attempts, size, number, time_s, at,"
                    " encoding, why, data) VALUES ((SELECT coalesce(max(place), 0) + 1 FROM"
                    " inputs), 'waiting', 0, ?, ?, ?, ?, ?, ?, ?)",
                    (size, index, time_s, at, encoding, why, blob),
                )
            except sqlite3.Error as error:
                self._trouble(error)
                self.counts["refused"] += 1
                return False
            self.counts["put"] += 1
            self._size, self._length = self._size + size, self._length + 1
            self.sentence = ""
            return True

    def take(self) -> Spooled | None:
        """Return the next input, or None; it stays here until `done` or `drop`."""
        direction = "ASC" if self.order == "oldest" else "DESC"
        with self._lock:
            try:
                row = self._db.execute(
                    "SELECT key, number, time_s, at, encoding, data, why, attempts FROM inputs"
                    f" WHERE state = 'waiting' ORDER BY attempts, place {direction} LIMIT 1"
                ).fetchone()
                if row is None:
                    return None
                self._set(row[0], "taken")
                data = msgspec.msgpack.decode(row[5], type=bytes | list[bytes])
            except msgspec.DecodeError:
                self._remove(row[0], "damaged")
                return None
            except sqlite3.Error as error:
                self._trouble(error)
                return None
        key, index, time_s, at, encoding, _, why, attempts = row
        return Spooled(key, index, time_s, at, encoding, data, why, attempts)

    def delivering(self, key: int) -> None:
        """Note that an answer is given out now: after a crash it is not given again."""
        with self._lock:
            self._try(lambda: self._set(key, "delivering"))

    def done(self, key: int) -> None:
        """Forget an input whose answer was given out."""
        with self._lock:
            self._try(lambda: self._remove(key, "done"))

    def drop(self, key: int) -> None:
        """Forget an input that will have no answer."""
        with self._lock:
            self._try(lambda: self._remove(key, "dropped"))

    def give_back(self, key: int) -> None:
        """Let an input wait again where it was."""
        with self._lock:
            self._try(lambda: self._set(key, "waiting"))

    def failed(self, key: int) -> int:
        """Let an input that the server failed on wait behind all others; return how often it
        has."""
        with self._lock:
            try:
                self._db.execute(
                    "UPDATE inputs SET state = 'waiting', attempts = attempts + 1 WHERE key = ?",
                    (key,),
                )
                row = self._db.execute("SELECT attempts FROM inputs WHERE key = ?", (key,))
                return int((row.fetchone() or (1 << 30,))[0])
            except sqlite3.Error as error:
                self._trouble(error)
                return 1 << 30

    def close(self) -> None:
        """Let go of the file."""
        with self._lock, suppress(sqlite3.Error):
            self._db.close()

    # Under the lock.

    def _try(self, change: object) -> None:
        try:
            change()  # type: ignore[operator]
        except sqlite3.Error as error:
            self._trouble(error)

    def _set(self, key: int, state: str) -> None:
        self._db.execute("UPDATE inputs SET state = ? WHERE key = ?", (state, key))

    def _remove(self, key: int, cause: str) -> None:
        row = self._db.execute("DELETE FROM inputs WHERE key = ? RETURNING size", (key,)).fetchone()
        if row is not None:
            self._size, self._length = self._size - row[0], self._length - 1
            self.counts[cause] += 1

    def _make_room(self, size: int) -> bool:
        while self._size + size > self.max_bytes:
            if self.order == "oldest":
                return False
            row = self._db.execute(
                "SELECT key FROM inputs WHERE state = 'waiting' ORDER BY place LIMIT 1"
            ).fetchone()
            if row is None:
                return False
            self._remove(row[0], "evicted")
        return True

    def _trouble(self, error: sqlite3.Error) -> None:
        self.sentence = f"{self.path or 'the queue'} cannot be used: {error}"
        if not isinstance(error, sqlite3.DatabaseError) or isinstance(
            error, sqlite3.OperationalError
        ):
            return
        # Damaged while in use: what is in it is lost, what comes finds a new one.
        self.counts["damaged"] += self._length
        with suppress(sqlite3.Error):
            self._db.close()
        self._size = self._length = 0
        self._set_aside()
        self._db = self._open()

    # Opening.

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            return self._connect(":memory:")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror}") from error
        for attempt in range(2):
            try:
                return self._connect(str(self.path))
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    raise ConfigError(
                        f"{self.path} is in use by another process; give each its own state folder"
                    ) from error
                if attempt:
                    raise ConfigError(f"{self.path} cannot be used: {error}") from error
                self._put_aside("cannot be read")
            except sqlite3.DatabaseError:
                self._put_aside("is damaged")
            except _OtherSpoolError as error:
                self.counts["damaged"] += error.waiting
                self._put_aside(f"holds {error.waiting} inputs for {error}")
        raise ConfigError(f"{self.path} cannot be used")

    def _connect(self, path: str) -> sqlite3.Connection:
        db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
        try:
            if path != ":memory:":
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
                db.execute("PRAGMA auto_vacuum = FULL")
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA journal_size_limit = 1000000")
                if db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("damaged")
            db.executescript(_TABLES)
            self._take_stock(db)
        except BaseException:
            db.close()
            raise
        return db

    def _take_stock(self, db: sqlite3.Connection) -> None:
        """See what a former life has left."""
        about = dict(db.execute("SELECT key, value FROM about"))
        length = db.execute("SELECT count(*) FROM inputs").fetchone()[0]
        wanted = {"version": VERSION, "identity": self._identity}
        if length and about and about != wanted:
            what = (
                "another filter or model" if about.get("version") == VERSION else "another version"
            )
            raise _OtherSpoolError(what, length)
        db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", wanted.items())
        uncertain = db.execute("DELETE FROM inputs WHERE state = 'delivering'").rowcount
        db.execute("UPDATE inputs SET state = 'waiting' WHERE state = 'taken'")
        self.counts["uncertain"] += uncertain
        size, self._length = db.execute("SELECT total(size), count(*) FROM inputs").fetchone()
        self._size = int(size)

    def _put_aside(self, why: str) -> None:
        if not self.counts["damaged"]:
            self.counts["damaged"] += 1
        aside = self._set_aside()
        self.sentence = f"{self.path} {why}; it is kept as {aside}, a new queue begins"

    def _set_aside(self) -> Path | None:
        """Rename the file; of those the last KEPT_DAMAGED stay."""
        if self.path is None:
            return None
        names = [self.path.with_name(f"{self.path.name}.damaged-{n}") for n in range(KEPT_DAMAGED)]
        free = next((p for p in names if not p.exists()), None)
        aside = free or min(names, key=lambda p: p.stat().st_mtime)
        with suppress(OSError):
            self.path.replace(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(OSError):
                Path(f"{self.path}{suffix}").unlink()
        with suppress(OSError):
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return aside


class _OtherSpoolError(Exception):
    """A queue for another model, filter or version. waiting: inputs in it."""

    def __init__(self, what: str, waiting: int) -> None:
        super().__init__(what)
        self.waiting = waiting
