"""The reuse cache: bounded answers, searched by embedding distance and age."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from infi_edge.archive import array_bytes, array_from_bytes, read_archive, write_archive
from infi_edge.errors import BundleError
from infi_edge.tasks import Value

Eviction = Literal["oldest", "lru", "least-hit"]
CANDIDATES = 32
ENTRY_OVERHEAD_BYTES = 96


@dataclass(frozen=True, slots=True)
class Candidates:
    """Entries that may answer: slots, uint8 L1 distances and ages in seconds, each shape (C,)."""

    slots: np.ndarray
    distances: np.ndarray
    ages_s: np.ndarray


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


class ReuseCache:
    """Up to `capacity` (embedding, value) pairs, also bounded by bytes and age.

    Entries lie in slots 0..len-1 of arrays made once. One writer, one reader, one thread.
    """

    def __init__(
        self,
        dim: int,
        capacity: int = 4096,
        max_bytes: int = 8 << 20,
        max_age_s: float | None = None,
        eviction: Eviction = "oldest",
    ) -> None:
        """dim: numbers in an embedding. max_bytes: embeddings, values and bookkeeping together."""
        if capacity < 1 or dim < 1 or max_bytes < 1:
            raise ValueError("capacity, dim and max_bytes must be at least 1")
        self.dim, self.capacity, self.max_bytes = dim, capacity, max_bytes
        self.max_age_s, self.eviction = max_age_s, eviction
        self._embeddings = np.zeros((capacity, dim), np.uint8)
        self._times_s = np.zeros(capacity)
        self._order = np.zeros(capacity, np.int64)  # insertion number
        self._used = np.zeros(capacity, np.int64)  # event number of the last hit or insertion
        self._hits = np.zeros(capacity, np.int64)
        self._bytes = np.zeros(capacity, np.int64)
        self._values: list[Value] = []
        self.evictions = 0
        self._events = 0
        self._recent = np.zeros(0, np.int64)
        self._oldest_s = 0.0

    def __len__(self) -> int:
        return len(self._values)

    @property
    def size_bytes(self) -> int:
        """Bytes the entries count for, against max_bytes."""
        return int(self._bytes[: len(self)].sum())

    @property
    def newest(self) -> int:
        """The slot of the entry inserted last; the cache must not be empty."""
        return int(self._recent[0])

    def value(self, slot: int) -> Value:
        """The answer stored in a slot."""
        return self._values[slot]

    def age_s(self, slot: int, now_s: float) -> float:
        """Seconds of the stream since the slot was filled."""
        return max(now_s - float(self._times_s[slot]), 0.0)

    def distance(self, slot: int, embedding: np.ndarray) -> int:
        """The L1 distance, in uint8 steps, between a slot and an embedding (D,)."""
        return int(cv2.norm(self._embeddings[slot], embedding, cv2.NORM_L1))

    def expire(self, now_s: float) -> None:
        """Drop entries older than max_age_s."""
        if self.max_age_s is not None and self._values and now_s - self._oldest_s > self.max_age_s:
            self._drop(np.flatnonzero(now_s - self._times_s[: len(self)] > self.max_age_s))

    def candidates(self, embedding: np.ndarray, now_s: float) -> Candidates:
        """Return the 32 nearest entries and the 32 most recent ones (of fewer: all), each once.

        embedding: uint8 (D,). The entry of least p(changed | distance, age) is among them unless
        it is neither near nor recent. Entries over max_age_s are dropped first.
        Cost: one pass over entries * D bytes (OpenCV batchDistance, L1).
        """
        self.expire(now_s)
        count = len(self)
        if count == 0:
            nothing = np.zeros(0, np.int64)
            return Candidates(nothing, nothing, np.zeros(0))
        if count <= 2 * CANDIDATES:
            slots = np.arange(count)
        else:
            slots = np.union1d(self.nearest(embedding), self._recent)
        distances = self.differences(slots, embedding).sum(axis=1, dtype=np.int32)
        ages = np.maximum(now_s - self._times_s[slots], 0.0)
        return Candidates(slots, distances, ages)

    def differences(self, slots: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        """Return |entry - embedding| of these slots, uint8 (C, D). embedding: uint8 (D,)."""
        # A real copy: OpenCV reads past a broadcast array of one number a row.
        repeated = np.repeat(embedding[None], len(slots), axis=0)
        difference: np.ndarray = cv2.absdiff(self._embeddings[slots], repeated)
        return difference.reshape(len(slots), self.dim)

    def nearest(self, embedding: np.ndarray) -> np.ndarray:
        """Return the slots of the (up to 32) nearest entries, nearest first.

        embedding: uint8 (D,). The cache must not be empty.
        """
        count = len(self)
        _, slots = cv2.batchDistance(
            embedding[None],
            self._embeddings[:count],
            cv2.CV_32S,
            normType=cv2.NORM_L1,
            K=min(CANDIDATES, count),
        )
        found: np.ndarray = slots[0]
        return found

    def touch(self, slot: int) -> None:
        """Note that a slot has answered (what lru and least-hit go by)."""
        self._events += 1
        self._used[slot] = self._events
        self._hits[slot] += 1

    def insert(self, embedding: np.ndarray, value: Value, now_s: float) -> None:
        """Store an answer, evicting as the bounds demand. embedding: uint8 (D,), copied.

        An answer larger than max_bytes is not stored.
        """
        if embedding.shape != (self.dim,) or embedding.dtype != np.uint8:
            raise ValueError(
                f"embedding is {embedding.dtype} {embedding.shape}, not uint8 ({self.dim},)"
            )
        text = json.dumps(value) if isinstance(value, (list, dict, str)) else ""
        size = self.dim + len(text) + ENTRY_OVERHEAD_BYTES
        if size > self.max_bytes:
            return
        while self._values and (
            len(self) >= self.capacity or self.size_bytes + size > self.max_bytes
        ):
            self._drop(np.array([self._victim()]))
            self.evictions += 1
        slot = len(self)
        self._values.append(value)
        self._events += 1
        self._embeddings[slot] = embedding
        self._times_s[slot] = now_s
        self._order[slot] = self._used[slot] = self._events
        self._hits[slot] = 0
        self._bytes[slot] = size
        self._recent = np.concatenate([[slot], self._recent[: CANDIDATES - 1]])
        self._oldest_s = min(self._oldest_s, now_s) if slot else now_s

    def fill(
        self,
        embeddings: np.ndarray,
        values: list[Value],
        times_s: np.ndarray,
        sizes: np.ndarray,
    ) -> None:
        """Store many answers in an empty cache at once, in their order.

        embeddings: uint8 (N, D). times_s: (N,). sizes: int64 (N,), bytes of the values. What
        does not fit is left out, the oldest first.
        """
        sizes = sizes + self.dim + ENTRY_OVERHEAD_BYTES
        fits = np.cumsum(sizes[::-1])[::-1] <= self.max_bytes
        first = max(len(values) - int(np.count_nonzero(fits)), len(values) - self.capacity)
        count = len(values) - first
        self._values = values[first:]
        self._embeddings[:count] = embeddings[first:]
        self._times_s[:count] = times_s[first:]
        self._order[:count] = self._used[:count] = self._events + 1 + np.arange(count)
        self._hits[:count] = 0
        self._bytes[:count] = sizes[first:]
        self._events += count
        self._refresh()

    @property
    def bounds(self) -> tuple[int, int, int, float | None, Eviction]:
        """What it was made with."""
        return self.dim, self.capacity, self.max_bytes, self.max_age_s, self.eviction

    def adopt(self, other: ReuseCache) -> None:
        """Insert another cache's entries, in their order: the newest are left if not all fit."""
        for slot in np.argsort(other._order[: len(other)]).tolist():
            self.insert(other._embeddings[slot], other._values[slot], float(other._times_s[slot]))

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._refresh()

    def _victim(self) -> int:
        count = len(self)
        if self.eviction == "oldest":
            return int(self._order[:count].argmin())
        if self.eviction == "lru":
            return int(self._used[:count].argmin())
        return int(np.lexsort((self._order[:count], self._hits[:count]))[0])

    def _drop(self, slots: np.ndarray) -> None:
        for slot in sorted(slots.tolist(), reverse=True):
            last = len(self) - 1
            for array in (
                self._embeddings,
                self._times_s,
                self._order,
                self._used,
                self._hits,
                self._bytes,
            ):
                array[slot] = array[last]
            self._values[slot] = self._values[last]
            self._values.pop()
        self._refresh()

    def _refresh(self) -> None:
        count = len(self)
        order = self._order[:count]
        recent = (
            np.argpartition(-order, CANDIDATES)[:CANDIDATES]
            if count > CANDIDATES
            else np.arange(count)
        )
        self._recent = recent[np.argsort(-order[recent])]
        self._oldest_s = float(self._times_s[:count].min()) if count else 0.0

    def save(self, path: str | Path, identity: str, now_s: float) -> None:
        """Write a snapshot atomically. identity: source, model, task and bundle it belongs to."""
        count = len(self)
        order = np.argsort(self._order[:count])
        manifest = {
            "format_version": 1,
            "kind": "reuse-cache",
            "identity": identity,
            "count": count,
            "dim": self.dim,
            "saved_at_unix_s": time.time(),
        }
        members = {
            "embeddings.npy": array_bytes(self._embeddings[order]),
            "ages_s.npy": array_bytes(now_s - self._times_s[order]),
            "values.json": json.dumps([self._values[i] for i in order]).encode(),
        }
        write_archive(path, manifest, members)

    def load(self, path: str | Path, identity: str, now_s: float) -> int:
        """Fill an empty cache from a snapshot; return the number of entries.

        The time between save and load counts as age (by the wall clock, never negative).
        Raises BundleError if the snapshot is damaged or belongs to something else.
        """
        manifest, members = read_archive(path)
        if manifest.get("kind") != "reuse-cache" or manifest.get("format_version") != 1:
            raise BundleError(f"{path} is no cache snapshot of a known version; delete it")
        if manifest.get("identity") != identity or manifest.get("dim") != self.dim:
            raise BundleError(
                f"{path} is the cache of another source, model, task or filter; delete it"
            )
        count, saved = manifest.get("count"), manifest.get("saved_at_unix_s")
        try:
            values = json.loads(members["values.json"], parse_constant=_refuse)
            if not isinstance(count, int) or not isinstance(saved, (int, float)):
                raise ValueError("count")
            if not isinstance(values, list) or len(values) != count:
                raise ValueError("values")
            embeddings = array_from_bytes(
                members["embeddings.npy"], "uint8", (count, self.dim), f"{path}: embeddings"
            )
            ages = array_from_bytes(members["ages_s.npy"], "float64", (count,), f"{path}: ages")
            ages = np.maximum(ages, 0.0) + max(time.time() - float(saved), 0.0)
            if not np.isfinite(ages).all():
                raise ValueError("ages")
        except (KeyError, ValueError, OverflowError, RecursionError) as error:
            raise BundleError(f"{path} is a damaged cache snapshot; delete it") from error
        for embedding, value, age in zip(embeddings, values, ages.tolist(), strict=True):
            self.insert(embedding, value, now_s - age)
        return len(self)
