"""A bounded queue of inputs that wait for a server, in memory or on disk.

SQLite keeps it, in WAL mode with synchronous FULL: with less, a power loss could take back an input
that was said to be kept, or bring back one whose answer is out. A card is written to only while the
link is down, so it may cost.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import msgspec

from infi_edge.capture.recorded import Encoding
from infi_edge.errors import ConfigError

Order = Literal["oldest", "newest"]
T = TypeVar("T")

FORMAT = 2
ROW_BYTES = 1024
"""What an input counts for beside its bytes: SQLite may leave half a page of 4 kB unused."""
MOST_BYTES = 512 << 20
"""Of one input; SQLite takes no more than twice that."""
LOG_BYTES = 512 << 10
"""The write-ahead log is written back, and an emptied queue gives its room back, above this."""
SPARE_BYTES = 1 << 20
"""Of the disk, left free: taking an input out needs some, too."""
KEPT_DAMAGED = 3

_LARGEST = 1 << 53
_MOST_ROWS = 1 << 20
_FAULTS = (sqlite3.Error, UnicodeError, OverflowError, MemoryError)
"""What SQLite raises; not UTF-8 are names in a damaged file, and so its messages."""
_ELSEWHERE = ("disk is full", "I/O error", "unable to open")
"""SQLite's words for troubles that are not the file's own."""
_TABLES = """
CREATE TABLE IF NOT EXISTS about (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS inputs (
    key INTEGER PRIMARY KEY, place INTEGER NOT NULL, attempts INTEGER NOT NULL,
    given INTEGER NOT NULL, checksum INTEGER NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_place ON inputs (place);
"""
_COLUMNS = "key, place, attempts, given, checksum, record"
_DELETE = "DELETE FROM inputs WHERE key = ?"
_INSERT = "INSERT OR IGNORE INTO inputs VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Spooled:
    """An input that waits. key: the spool's own. index, time_s: of the sample. at: its wall time.
    why: it was not answered at once. attempts: how often the server has failed on it."""

    key: int
    index: int
    time_s: float
    at: str
    encoding: Encoding
    data: bytes | list[bytes]
    why: str
    attempts: int


class _Record(msgspec.Struct, frozen=True, array_like=True):
    index: int
    time_s: float
    at: str
    encoding: Encoding
    data: bytes | list[bytes]
    why: str


class _Row(NamedTuple):
    key: int
    place: int
    attempts: int
    given: int
    checksum: int
    record: bytes

    def spooled(self) -> Spooled | None:
        """The input, or None if this is not what was written."""
        if not _are_numbers(self.key, self.attempts) or not isinstance(self.record, bytes):
            return None
        if self.checksum != _checksum(self.key, self.record):
            return None
        try:
            kept = msgspec.msgpack.decode(self.record, type=_Record)
        except (msgspec.MsgspecError, UnicodeError):
            return None
        fields = (kept.index, kept.time_s, kept.at, kept.encoding, kept.data, kept.why)
        return Spooled(self.key, *fields, self.attempts)


class _UnusableError(Exception):
    """A file that is no queue of ours; the message says what it is."""


class Spool:
    """Every input that was put is answered once, or counted; any thread may use it.

    counts, of this object's life: `put` (calls) and `found` (in the file, at the start) are
    together `refused`, `done`, `dropped`, `evicted` (for newer ones), `uncertain` (a former
    process was giving the answer out when it ended), `damaged` (cannot be read), and what is here.
    sentence: what is wrong, or was at the start; else empty.
    """

    def __init__(
        self, path: Path | None, max_bytes: int, order: Order = "oldest", identity: str = ""
    ) -> None:
        """path: None: in memory. max_bytes: of all inputs; the files stay under 1.5 times that and
        1 MB. order: `oldest` first (the whole story is wanted: when full, what is new is refused)
        or `newest` first (fresh answers are wanted: when full, the oldest are evicted). identity:
        of the model and filter the inputs are for.

        A file that is damaged, or for another identity, is kept as NAME.damaged-N, and a new queue
        begins with what can be read of it. A folder that cannot be written is tried again at each
        put. Raises ConfigError if another process uses the file.
        """
        self.path, self.max_bytes, self.order = path, max_bytes, order
        self.counts: Counter[str] = Counter()
        self.sentence = ""
        self._identity = identity
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._lock_file = -1
        self._closed = False
        self._size = self._length = 0
        self._key = self._first = self._last = 0
        self._out: dict[int, _Row] = {}
        self._owed: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._begin()

    def __len__(self) -> int:
        """Inputs that wait or are being answered."""
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
        """Keep an input; return whether it is kept for sure. Arguments: see Spooled."""
        record = msgspec.msgpack.encode(_Record(index, time_s, at, encoding, data, why))
        size = len(record) + ROW_BYTES
        with self._lock:
            self.counts["put"] += 1
            if size > min(self.max_bytes, MOST_BYTES) or not self._disk_has(2 * size):
                full = "the disk is full" if size <= self.max_bytes else "an input is too large"
                self.sentence = f"{full} for the queue"
                evicted = None
            else:
                self._settle()
                evicted = self._try(lambda db: self._insert(db, record, size), None)
            if evicted is None:
                self.counts["refused"] += 1
                return False
            self.counts["evicted"] += len(evicted)
            self._length += 1 - len(evicted)
            self._size += size - sum(evicted)
            self.sentence = ""
            return True

    def take(self) -> Spooled | None:
        """Return the next input, or None; it is here until `done` or `drop`.

        Nothing is written: one whose answer had not come when the process ended waits again.
        """
        with self._lock:
            self._settle()
            while (row := self._try(self._next, None)) is not None:
                self._out[row.key] = row
                if (spooled := row.spooled()) is not None:
                    return spooled
                self._end(row.key, "damaged")
            return None

    def delivering(self, key: int) -> bool:
        """Note that an answer is about to be given out; return whether it may be.

        It may not if the note cannot be written (then give it back): after a crash the input would
        be answered again.
        """
        with self._lock:
            row = self._out.get(key)
            if row is None or not self._try(lambda db: _set_given(db, key), False):
                return False
            self._out[key] = row._replace(given=1)
            return True

    def done(self, key: int) -> None:
        """Forget an input whose answer was given out."""
        with self._lock:
            self._end(key, "done")

    def drop(self, key: int) -> None:
        """Forget an input that will have no answer."""
        with self._lock:
            self._end(key, "dropped")

    def give_back(self, key: int) -> None:
        """Let an input wait again where it was."""
        with self._lock:
            row = self._out.pop(key, None)
            if row is not None and row.given:
                self._owe(key, "UPDATE inputs SET given = 0 WHERE key = ?", key)

    def failed(self, key: int) -> int:
        """Let an input that the server failed on wait behind all others; return how often it has
        failed."""
        with self._lock:
            row = self._out.pop(key, None)
            if row is None:
                return 0
            if self.order == "oldest":
                place = self._last = self._last + 1
            else:
                place = self._first = self._first - 1
            change = "UPDATE inputs SET given = 0, attempts = ?, place = ? WHERE key = ?"
            self._owe(key, change, row.attempts + 1, place, key)
            return row.attempts + 1

    def close(self) -> None:
        """Let go of the file; what waits stays in it."""
        with self._lock:
            self._settle()
            self._closed = True
            self._disconnect()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    # What follows is called with the lock held.

    def _insert(self, db: sqlite3.Connection, record: bytes, size: int) -> list[int] | None:
        """Store a record; return the sizes of those evicted for it, or None if there is no room."""
        evicted = self._evictable(db, size) if self.order == "newest" else {}
        if self._size - sum(evicted.values()) + size > self.max_bytes:
            self.sentence = "the queue is full"
            return None
        db.executemany(_DELETE, [(key,) for key in evicted])
        self._key, self._last = self._key + 1, self._last + 1
        row = _Row(self._key, self._last, 0, 0, _checksum(self._key, record), record)
        db.execute(_INSERT, row)
        return list(evicted.values())

    def _evictable(self, db: sqlite3.Connection, size: int) -> dict[int, int]:
        """The oldest that make room for one of this size, or all that wait: {key: size}."""
        oldest: dict[int, int] = {}
        excess = self._size + size - self.max_bytes
        with closing(db.execute("SELECT key, length(record) FROM inputs ORDER BY place")) as rows:
            while excess > 0 and (row := next(rows, None)) is not None:
                if self._waits(row[0]):
                    oldest[row[0]] = row[1] + ROW_BYTES
                    excess -= oldest[row[0]]
        return oldest

    def _next(self, db: sqlite3.Connection) -> _Row | None:
        way = "ASC" if self.order == "oldest" else "DESC"
        with closing(db.execute(f"SELECT key FROM inputs ORDER BY place {way}")) as keys:
            key = next((key for (key,) in keys if self._waits(key)), None)
        row = db.execute(f"SELECT {_COLUMNS} FROM inputs WHERE key = ?", (key,)).fetchone()
        if row is None and self._length > len(self._out.keys() | self._owed.keys()):
            raise sqlite3.DatabaseError("an index that is not of its table")
        return row and _Row(*row)

    def _waits(self, key: int) -> bool:
        return key not in self._out and key not in self._owed

    def _end(self, key: int, cause: str) -> None:
        row = self._out.pop(key, None)
        if row is None:
            return
        self.counts[cause] += 1
        self._length -= 1
        self._size -= _size(row)
        self._owe(key, _DELETE, key)

    def _owe(self, key: int, change: str, *values: int) -> None:
        """Write a change of a row now, or when that is possible; until then it is not taken."""
        self._owed[key] = (change, values)
        self._settle()

    def _settle(self) -> None:
        def pay(db: sqlite3.Connection) -> bool:
            for change, values in self._owed.values():
                db.execute(change, values)
            return True

        paid = bool(self._owed) and self._try(pay, False)
        if paid:
            self._owed.clear()

    def _try(self, change: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Make a change as one transaction; `otherwise` if that fails, and the sentence says so."""
        try:
            db = self._db or self._begin()
        except ConfigError as error:
            self.sentence = str(error)
            return otherwise
        if db is None:
            return otherwise
        try:
            db.execute("BEGIN")
            result = change(db)
            if db.in_transaction:
                db.execute("COMMIT")
        except _FAULTS as error:
            with suppress(sqlite3.Error):
                db.rollback()
            self._trouble(error)
            return otherwise
        self._trim(db)
        return result

    def _trouble(self, error: Exception) -> None:
        damage = (sqlite3.DatabaseError, sqlite3.IntegrityError, UnicodeDecodeError)  # no others
        if self.path is None or type(error) not in damage:
            self.sentence = f"{self.path or 'the queue'} cannot be used: {error}"
            return
        self._disconnect()
        self._replace("is damaged", self._length)

    def _trim(self, db: sqlite3.Connection) -> None:
        """Keep the log short, and give back the room of a queue that is empty again."""
        if self.path is None:
            return
        try:
            log = _bytes(_log(self.path))
            if _bytes(self.path) + log > LOG_BYTES and _is_empty(db):
                self._disconnect()  # the next call makes a new one
                self.path.unlink()  # before its log: without that, what is gone would come back
                _log(self.path).unlink(missing_ok=True)
            elif log > LOG_BYTES:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (OSError, *_FAULTS):
            pass  # a later call tries again

    def _disk_has(self, size: int) -> bool:
        if self.path is None:
            return True
        with suppress(OSError):
            return shutil.disk_usage(self.path.parent).free >= size + SPARE_BYTES
        return True

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    # Opening. No other process does it at the same time.

    def _begin(self) -> sqlite3.Connection | None:
        """Open the queue, or a new one; None if neither can be, and the sentence says why.

        Raises ConfigError if another process uses it.
        """
        if self._closed:
            self.sentence = "the queue is closed"
            return None
        before = self.counts.copy()
        try:
            self._claim()
            self._db = self._connect()
        except OSError as error:
            self.sentence = f"{self.path} cannot be written: {_reason(error)}"
            return None
        except _UnusableError as error:
            self._replace(str(error), None)
        except sqlite3.Error as error:
            self.sentence = f"{self.path} cannot be used: {error}"
            return None
        self.counts["found"] += self._length + (self.counts - before).total()
        return self._db

    def _claim(self) -> None:
        """Make the file, for this process alone. Raises OSError, ConfigError, _UnusableError."""
        if self.path is None:
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock_file < 0:
            # Not on the queue's own file: closing that a second time would lose SQLite's locks.
            file = _made(Path(f"{self.path}.lock"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(file)
                if isinstance(error, BlockingIOError):
                    raise _in_use(self.path) from None
                raise
            self._lock_file = file
        os.close(_made(self.path))
        if not self.path.stat().st_size and _bytes(_log(self.path)):
            raise _UnusableError("is damaged")  # SQLite would take it for a new one

    def _connect(self) -> sqlite3.Connection:
        """Open a queue and see what is in it. Raises _UnusableError, ConfigError, sqlite3.Error."""
        db = _connection(self.path)
        try:
            self._prepare(db)
            self._take_stock(db)
        except _FAULTS as error:
            db.close()
            if "locked" in str(error) and self.path is not None:
                raise _in_use(self.path) from error
            if any(words in str(error) for words in _ELSEWHERE):
                raise
            raise _UnusableError("is damaged") from error
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Check the tables, or make them."""
        # Debian's SQLite overwrites what is deleted: each input would be written to the card twice.
        db.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "PRAGMA wal_autocheckpoint = 0; PRAGMA secure_delete = OFF"
        )
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT")
        elif db.execute("PRAGMA user_version").fetchone()[0] != FORMAT:
            raise _UnusableError("is of another version, or no queue")
        elif db.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("integrity_check")
        identity = db.execute("SELECT identity FROM about").fetchone()
        if identity != (self._identity,):
            if db.execute("SELECT 1 FROM inputs").fetchone():
                raise _UnusableError("holds inputs for another model or filter")
            db.executescript("BEGIN; DELETE FROM about")
            db.execute("INSERT INTO about VALUES (?)", (self._identity,))
            db.execute("COMMIT")

    def _take_stock(self, db: sqlite3.Connection) -> None:
        row = db.execute(
            "SELECT count(*), total(length(record)), min(place), max(place), max(key) FROM inputs"
        ).fetchone()
        length, size, first, last, key = (0 if number is None else number for number in row)
        if not _are_numbers(first, last, key):
            raise sqlite3.DatabaseError("numbers that were never given")
        self._length, self._size = length, int(size) + length * ROW_BYTES
        self._first, self._last, self._key = first, last, max(self._key, key)
        for key, size in db.execute("SELECT key, length(record) FROM inputs WHERE given IS NOT 0"):
            if key not in self._out:  # deleted with the next change: only once the count was seen
                self._owed[key] = (_DELETE, (key,))
                self._length, self._size = self._length - 1, self._size - size - ROW_BYTES
                self.counts["uncertain"] += 1

    def _replace(self, why: str, there: int | None) -> None:
        """Put the file aside; begin a new one with what can be read of it.

        there: how many inputs were in it, None if that is not known.
        """
        kept = uncertain = self._length = self._size = 0
        told = there
        try:
            aside = self._put_aside()
            self._claim()
            self._db = self._connect()
            with closing(_connection(aside)) as old:
                old.execute("PRAGMA writable_schema = ON")  # or a truncated file is not read at all
                if there is None:
                    told = _count(old)
                uncertain = self._salvage(old, self._db, why == "is damaged")
            self._take_stock(self._db)
            kept = self._length
            self.sentence = f"{self.path} {why}; it is kept as {aside.name}, a new queue begins"
            if kept:
                self.sentence += f" with {kept} inputs that could be read"
        except (OSError, _UnusableError, ConfigError, *_FAULTS) as error:
            self._disconnect()
            self._length = self._size = 0
            self._out.clear()
            self._owed.clear()
            self.sentence = f"{self.path} {why}, and no new queue can be made: {error}"
        if told is None or (there is None and told == 0):
            told = kept + uncertain + 1
        self.counts["uncertain"] += uncertain
        self.counts["damaged"] += max(told - kept - uncertain, 0)

    def _salvage(self, old: sqlite3.Connection, db: sqlite3.Connection, readable: bool) -> int:
        """Copy what is whole, and what is out; return how many are uncertain."""
        uncertain = 0
        db.execute("BEGIN")
        db.executemany(_INSERT, self._out.values())
        with suppress(*_FAULTS):
            rows = old.execute(f"SELECT {_COLUMNS} FROM inputs NOT INDEXED") if readable else ()
            for row in islice(map(_Row._make, rows), _MOST_ROWS):
                if row.key in self._out or row.spooled() is None:
                    continue
                if row.given == 0:
                    db.execute(_INSERT, row._replace(place=row.key))
                else:
                    uncertain += 1
        for change, values in self._owed.values():
            db.execute(change, values)
        db.execute("COMMIT")
        self._owed.clear()
        return uncertain

    def _put_aside(self) -> Path:
        """Rename the file; the last KEPT_DAMAGED of those stay. Raises OSError."""
        assert self.path is not None
        names = [self.path.with_name(f"{self.path.name}.damaged-{n}") for n in range(KEPT_DAMAGED)]
        free = next((name for name in names if not name.exists()), None)
        aside = free or min(names, key=lambda name: name.stat().st_mtime)
        _log(aside).unlink(missing_ok=True)
        self.path.replace(aside)
        with suppress(FileNotFoundError):
            _log(self.path).replace(_log(aside))
        return aside


def _connection(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(
        path or ":memory:", timeout=0.0, isolation_level=None, check_same_thread=False
    )
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # and so no file of shared memory
    db.execute("PRAGMA cell_size_check = ON")
    return db


def _set_given(db: sqlite3.Connection, key: int) -> bool:
    return db.execute("UPDATE inputs SET given = 1 WHERE key = ?", (key,)).rowcount == 1


def _is_empty(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM inputs LIMIT 1").fetchone() is None


def _count(db: sqlite3.Connection) -> int | None:
    with suppress(*_FAULTS):
        return int(db.execute("SELECT count(*) FROM inputs").fetchone()[0])
    return None


def _are_numbers(*values: object) -> bool:
    """Whether these are integers that may have been written."""
    return all(isinstance(value, int) and abs(value) < _LARGEST for value in values)


def _checksum(key: int, record: bytes) -> int:
    return zlib.crc32(record, key & 0xFFFFFFFF)


def _size(row: _Row) -> int:
    return ROW_BYTES + (len(row.record) if isinstance(row.record, bytes) else 0)


def _log(path: Path) -> Path:
    return Path(f"{path}-wal")


def _bytes(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _made(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _in_use(path: Path) -> ConfigError:
    return ConfigError(f"{path} is in use by another process; give each its own state folder")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
