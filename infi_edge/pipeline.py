"""One source with its gate, in a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from infi_edge.away import Away, Queued, Unanswered, count_bytes
from infi_edge.budget import OverBudget
from infi_edge.bundle import Manifest, OperatingPoint
from infi_edge.capture.address import public_address
from infi_edge.capture.source import Backoff, Source
from infi_edge.config import SourceConfig
from infi_edge.errors import BundleError, ConfigError, InfiEdgeError, SourceError
from infi_edge.events import Event, EventTracker
from infi_edge.executors.remote import LinkDown
from infi_edge.gate import Gate
from infi_edge.inflight import Arrival, InFlight
from infi_edge.late import Written
from infi_edge.learning.sample import LEARNED, SUFFIX
from infi_edge.preroll import PreRoll
from infi_edge.quiet import Quiet
from infi_edge.served import Abandoned, Job
from infi_edge.setups import Setup, capped
from infi_edge.sinks.outlet import Outlet, size_bytes
from infi_edge.status import Histogram, Minute, SourceStatus, learning_status
from infi_edge.types import Action, Result, Sample

log = logging.getLogger("infi_edge")

SNAPSHOT_EVERY_S = 60.0
HISTORY_MINUTES = 24 * 60
AGE_BOUNDS_S = tuple(round(0.001 * 1.3**i, 6) for i in range(42))
TAKE_OVER_S = 15.0
"""How long the queue of a pipeline that is replaced is waited for."""
DEGRADED_S = 5.0
"""Over budget only now and then is over budget: it is told until there was enough for so long."""


def wall_time(unix_s: float) -> str:
    """Return ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


class Pipeline:
    """Runs one source through its gate into the outlets, until the source ends or `close`.

    Another thread may swap the setup, enable, disable, or choose another row of the table; this
    takes place between two inputs.
    """

    def __init__(
        self,
        name: str,
        setup: Setup,
        open_source: Callable[[SourceConfig, Manifest], Source],
        outlets: Iterable[Outlet],
        state: Path,
        keep_pictures: bool = False,
    ) -> None:
        """state: folder of snapshots and of what is learned. keep_pictures: keep the last input,
        for the page."""
        self.name, self.state = name, state
        self.status = SourceStatus(name, frame_age_s=Histogram(AGE_BOUNDS_S))
        self.progress_s = time.monotonic()
        self.error: InfiEdgeError | None = None
        self.last: Sample | None = None
        self._setup = setup
        self._open = open_source
        self._outlets = list(outlets)
        self._keep_pictures = keep_pictures
        self._source: Source | None = None
        self._closing = threading.Event()
        self._orders: deque[Callable[[], None]] = deque()
        self._kept = PreRoll()
        self._degraded_until_s = -math.inf
        self._saved_s = time.monotonic()
        self._now_s: float | None = None
        self._loaded = False
        self._seen_by: Gate | None = None
        self._frozen = False
        self._not_kept = ""
        self._quiet = Quiet()
        self._told: dict[str, float] = {}
        self._turn = threading.Condition(threading.RLock())
        self._flight = InFlight(self._turn, setup.client.served.window, self._finish_in_flight)
        self._away: Away | None = None
        self._tracker = self._install(setup)
        self.thread = threading.Thread(target=self._run, name=f"source {name}", daemon=True)

    # Called from other threads.

    @property
    def setup(self) -> Setup:
        """What is in force."""
        return self._setup

    def swap(self, setup: Setup) -> None:
        """Put another gate in place. Its cache is kept if it belongs to the same bundle."""
        self._orders.append(lambda: self._swap(setup))

    def enable(self, enabled: bool) -> None:
        """Let the gate filter, or pass everything."""
        self._orders.append(lambda: self._enable(enabled))

    def choose(self, point: OperatingPoint) -> None:
        """Take the thresholds of another row of the table."""
        self._orders.append(lambda: self._choose(point))

    def route(self, outlets: Iterable[Outlet]) -> None:
        """Send results elsewhere from now on."""
        self._outlets = list(outlets)  # at once: what was there may be closed next

    def freeze(self, frozen: bool) -> None:
        """Learn nothing for now: the machine is hot."""
        self._frozen = frozen
        learner = self._setup.gate.learner
        if learner is not None:
            learner.freeze(frozen)

    def look(self) -> SourceStatus:
        """Return the status, with what is learned as of now."""
        gate, status = self._setup.gate, self.status
        learner = gate.learner
        if learner is None:
            status.learning = None
        else:
            status.learning = learning_status(learner, self._frozen, self._not_kept)
            self._promise()
        return status

    def close(self) -> None:
        """Begin to stop."""
        self._closing.set()
        source = self._source
        if source is not None:
            source.close()

    # The source's own thread.

    def _run(self) -> None:
        waits = Backoff(1.0, 60.0).waits()
        while not self._closing.is_set():
            try:
                self._loop()
                break
            except InfiEdgeError as error:
                self.error = error
                self.status.sentence = str(error)
                break
            except Exception as error:  # a defect must not end a daemon that runs for months
                log.exception("%s: unexpected error; the source starts again", self.name)
                self._error("internal", None, f"unexpected: {error!r}")
                self._pause(next(waits))
        self._save()
        with self._turn:
            self._setup.gate.close()
        self.status.state = "ended" if self.error is None else "failing"

    def _pause(self, wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s and not self._closing.wait(0.5):
            self._alive()

    def _alive(self) -> None:
        self.progress_s = time.monotonic()

    def _waiting(self) -> None:
        self._alive()
        if self._closing.is_set():
            raise Abandoned("the source is closed")

    def _loop(self) -> None:
        self._source = source = self._open(self._setup.config, self._setup.manifest)
        self.status.faults = source.health.counts
        if self._closing.is_set():
            source.close()
        try:
            self._away = self._make_away()
            for sample in source.samples():
                self._alive()
                self._take_orders()
                with self._turn:
                    self.status.state, self.status.sentence = (
                        source.health.state,
                        source.health.sentence,
                    )
                    if sample is None:
                        self._idle(source)
                    else:
                        self._input(sample, source)
                if self._closing.is_set():
                    break
            self._see_off()
        finally:
            source.close()
            self._source = None
            offload = self._setup.client.served.config.offload
            self._flight.close(offload.deadline_s + 2.0)
            self._close_away()
            self._end_events()

    def _take_orders(self) -> None:
        if not self._orders:
            return
        with suppress(Abandoned), self._turn:
            self._flight.drain(self._waiting)
        while self._orders:
            self._orders.popleft()()

    def _see_off(self) -> None:
        """Wait for what is under way when a recording has ended, and for what is queued."""
        with suppress(Abandoned):
            with self._turn:
                self._flight.drain(self._waiting)
            if self._away is not None:
                self._away.drain(self._waiting)

    def _input(self, sample: Sample, source: Source) -> None:
        gate, client = self._setup.gate, self._setup.client
        if not self._loaded:
            self._load(sample.time_s)
        self._now_s = sample.time_s
        age_s = max(source.now_s() - sample.time_s, 0.0)
        arrival = Arrival(sample, time.time() - age_s, age_s)
        self.last = sample if self._keep_pictures else None
        filter_errors = gate.stats["filter_error"]
        try:
            arrival.look = look = gate.look(sample)
            self._seen_by = gate
            step = gate.decide(look, self._flight.steps())
            while step is None:
                self._flight.wait_for_next(self._waiting)
                step = gate.decide(look, self._flight.steps())
            arrival.step, arrival.filter_s = step, gate.filter_s
            if step.result is None:
                arrival.job = client.begin(gate.inferred_data(step))
        except Abandoned:
            self.status.counts["abandoned"] += 1
            return
        except InfiEdgeError as error:
            arrival.error = error
        if gate.stats["filter_error"] > filter_errors and self._tell("filter"):
            step = arrival.step
            why = "" if step is None else step.decision.why
            log.error("%s, input %d is inferred: %s", self.name, sample.index, why)
        if client.served.remote is None:
            self._finish_now(arrival)
            return
        with suppress(Abandoned):
            self._flight.add(arrival, self._waiting)

    def _finish_in_flight(self, arrival: Arrival) -> None:
        try:
            self._finish_now(arrival)
        except Exception as error:  # a defect must not end what finishes the others
            log.exception("%s: unexpected error", self.name)
            self._error("internal", arrival.sample, f"unexpected: {error!r}")

    def _finish_now(self, arrival: Arrival) -> None:
        try:
            self._finish(arrival)
        finally:
            arrival.forget()

    def _finish(self, arrival: Arrival) -> None:
        """Answer an arrival: in the order of the inputs, once its inference is done."""
        sample, status = arrival.sample, self.status
        minute = self._minute(arrival.at_s)
        try:
            result = self._answer(arrival)
        except Abandoned:
            status.counts["abandoned"] += 1
            return
        except OverBudget:
            status.counts["over_budget"] += 1
            self._degrade("over budget: inputs are dropped")
            self._tick(sample.time_s, arrival.at_s)
            return
        except Queued:
            status.counts["queued"] += 1
            self._tell_away()
            self._tick(sample.time_s, arrival.at_s)
            return
        except Unanswered as error:
            minute.errors += 1
            self._tell_away()
            self._unanswered(sample, str(error))
            self._tick(sample.time_s, arrival.at_s)
            return
        except InfiEdgeError as error:
            cause = "input" if isinstance(error, SourceError) else "model"
            minute.errors += 1
            self._error(cause, sample, str(error))
            self._tick(sample.time_s, arrival.at_s)
            return
        status.frame_age_s.observe(arrival.age_s + arrival.filter_s)
        status.filter_s.observe(arrival.filter_s)
        wanted = self._wanted(result)
        result = replace(
            result,
            at=wall_time(arrival.at_s),
            before=self._kept.add(sample, result, wanted, self._setup.config.pre_roll_s),
        )
        self._count(result, sample, minute, wanted, arrival.job)
        self._deliver(result, sample)
        self._send(self._tracker.result(result, sample))
        self._save_now_and_then()

    def _answer(self, arrival: Arrival) -> Result:
        """The result of an arrival. Raises what has kept it from having one."""
        gate, client, step = self._setup.gate, self._setup.client, arrival.step
        if step is not None and step.result is not None:
            return step.result
        try:
            if arrival.error is not None:
                raise arrival.error
            assert arrival.job is not None
            assert step is not None
            value = client.end(arrival.job)
        except InfiEdgeError as error:
            count_bytes(self.status, arrival.job)
            if step is not None:
                gate.fail(step)
            if self._away is not None and step is not None and isinstance(error, LinkDown):
                return self._away.answer(arrival, wall_time(arrival.at_s), error)
            raise
        count_bytes(self.status, arrival.job)
        self.status.sent += client.served.remote is not None
        self.status.link = ""
        return gate.answer(step, value)

    def _unanswered(self, sample: Sample, message: str) -> None:
        """Count an input that is dropped because the server is away."""
        self.status.counts["link_down"] += 1
        if self._tell("dropped"):
            log.error("%s, input %d gets no answer: %s", self.name, sample.index, message)
        self._give_error(sample, message)

    def _give_error(self, sample: Sample, message: str) -> None:
        for outlet in self._outlets:
            outlet.put_error(self.name, sample, message)

    def _make_away(self) -> Away | None:
        """What answers while the server is away, of a model that is on one.

        Waits for a moment if a pipeline that this one replaces still has the queue.
        """
        if self._setup.client.served.remote is None:
            return None
        until_s = time.monotonic() + TAKE_OVER_S
        while True:
            try:
                return Away(
                    self.name,
                    self._setup,
                    self.state,
                    self.status,
                    self._turn,
                    self._give_late,
                    self._give_error,
                    self._tell,
                )
            except ConfigError:
                if self._closing.is_set() or time.monotonic() >= until_s:
                    raise
            self._pause(0.5)

    def _give_late(self, result: Result, sample: Sample) -> Written:
        """Deliver, and return what tells whether the sinks have written it."""
        self._deliver(result, sample)
        marks = [(outlet, outlet.mark()) for outlet in self._outlets if outlet.wants_results]
        return lambda soon: all(outlet.written(mark, soon) for outlet, mark in marks)

    def _tell_away(self) -> None:
        if self._away is not None:
            self._away.tell()

    def _close_away(self) -> None:
        if self._away is not None:
            self._away.close()
            self._away = None

    def _wanted(self, result: Result) -> bool:
        if result.action is Action.SKIP:
            return False
        return not self._setup.gate.task.is_redundant(result.value)

    def _count(
        self, result: Result, sample: Sample, minute: Minute, wanted: bool, job: Job | None
    ) -> None:
        status, gate = self.status, self._setup.gate
        minute.inputs += 1
        minute.wanted += wanted
        if not result.degraded:
            status.note_jpeg(sample.data)
        if result.action is Action.INFER and not result.degraded and job is not None:
            status.model_s.observe(job.model_s)
            status.queue_s.observe(job.queue_s)
            minute.model_s += job.model_s
        elif result.action is not Action.INFER:
            minute.filtered += 1
            status.bytes_saved += size_bytes(sample.data)
        if gate.scene is not None:
            status.counts["scene_change"] = gate.scene.changes
        status.scene_change = result.scene_change
        self._tell_away()
        if result.degraded:
            self._degrade(
                "the server is away: answers are old or another model's"
                if status.link
                else "over budget: the last answer is given again"
            )
        self._recover()
        status.last_value, status.last_action = result.value, result.action.value
        status.last_why, status.last_at = result.why, result.at
        status.last_score, status.last_p_changed = result.score, result.p_changed
        status.cache_entries, status.cache_bytes = len(gate.cache), gate.cache.size_bytes
        status.cache_hits = status.counts["reuse"]
        status.cache_evictions = gate.cache.evictions
        self._count_quiet(result, wanted)

    def _degrade(self, how: str) -> None:
        self.status.degraded = how
        self._promise()
        self._degraded_until_s = time.monotonic() + DEGRADED_S
        if self._tell("over budget"):
            log.warning("%s: %s; what is promised is suspended meanwhile", self.name, how)

    def _recover(self) -> None:
        if self.status.degraded and time.monotonic() >= self._degraded_until_s:
            self.status.degraded = ""
            self._promise()

    def _count_quiet(self, result: Result, wanted: bool) -> None:
        status, gate, quiet = self.status, self._setup.gate, self._quiet
        wanted = wanted and getattr(gate.task, "can_skip", True)
        alarm = quiet.count(result, wanted, gate.policy.same)
        if alarm and not status.quiet_alarm:
            log.warning(
                "%s: everything filtered for %.0f s, longer than ever before; look whether the "
                "source still shows what it should",
                self.name, quiet.quiet_s,
            )  # fmt: skip
        status.quiet_s, status.longest_quiet_s = quiet.quiet_s, quiet.longest_s
        status.quiet_alarm = alarm

    def _error(self, cause: str, sample: Sample | None, message: str) -> None:
        message = public_address(message)  # a model's exception may hold anything
        self.status.counts["error"] += 1
        self.status.errors[cause] += 1
        if self._tell(cause):
            where = self.name if sample is None else f"{self.name}, input {sample.index}"
            log.error("%s: %s", where, message)
        if sample is not None:
            self._give_error(sample, message)

    def _tell(self, cause: str) -> bool:
        """Whether the log shall have it: once per cause in ten minutes."""
        now_s = time.monotonic()
        told_s = self._told.get(cause)
        if told_s is not None and now_s - told_s < 600.0:
            return False
        self._told[cause] = now_s
        return True

    def _deliver(self, result: Result, sample: Sample) -> None:
        masked: Result | None = None
        for outlet in self._outlets:
            if not (outlet.wants_samples and outlet.wants_results):
                outlet.put_result(result, sample)
                continue
            if masked is None:
                masked = replace(result, before=tuple(map(self._masked, result.before)))
                sample = self._masked(sample)
            outlet.put_result(masked, sample)

    def _send(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.sample is not None and any(o.wants_samples for o in self._outlets):
                sample, before = self._masked(event.sample), map(self._masked, event.before)
                event = replace(event, sample=sample, before=tuple(before))  # noqa: PLW2901
            for outlet in self._outlets:
                outlet.put_event(event)
        self.status.event_active = self._tracker.active

    def _masked(self, sample: Sample) -> Sample:
        """What may leave the daemon of an input: what is masked is not seen by anybody."""
        data = self._setup.gate.masked(sample.data)
        return sample if data is sample.data else replace(sample, data=data)

    def _idle(self, source: Source) -> None:
        self._tell_away()
        if not len(self._flight):
            self._tick(source.now_s(), time.time())
        self._recover()
        if source.health.state == "failing":
            self._quiet.restart()  # no input at all is told otherwise
        self._save_now_and_then()

    def _tick(self, now_s: float, at_s: float) -> None:
        self._send(self._tracker.tick(now_s, wall_time(at_s)))

    def _end_events(self) -> None:
        self._send(self._tracker.finish(wall_time(time.time())))

    def _minute(self, at_s: float) -> Minute:
        history = self.status.history
        begin_s = at_s - at_s % 60
        last_s = history[-1].at_s if history else math.inf
        if not last_s - 60 <= begin_s <= last_s:  # or the clock was set back
            history.append(Minute(begin_s))
            if len(history) > HISTORY_MINUTES:
                del history[0]
        return history[-1]

    # Orders, between two inputs.

    def _install(self, setup: Setup) -> EventTracker:
        """Take a setup into force; return what makes its results into events."""
        status, config, manifest = self.status, setup.config, setup.manifest
        gate = setup.gate
        gate.stats = status.counts
        for client in (setup.client, setup.local):
            if client is not None:
                client.alive = self._waiting
        status.address = public_address(config.address)
        self._flight.window = setup.client.served.window
        status.modality, status.model = manifest.modality, setup.client.served.name
        status.bundle, status.task = Path(config.filter).name, manifest.workload.task
        status.enabled = gate.enabled
        learner = gate.learner
        status.points = [] if learner is not None else list(manifest.calibration.points)
        status.confidence = manifest.calibration.confidence
        if learner is not None:
            learner.freeze(self._frozen)
        quiet_s = manifest.trained_on.get("longest_quiet_s", 0.0)
        if isinstance(quiet_s, (int, float)):
            self._quiet.longest_s = max(self._quiet.longest_s, float(quiet_s))
        self._setup = setup
        self.look()
        self._point(setup.point)
        task = gate.task
        can_skip = getattr(task, "can_skip", True)
        return EventTracker(
            self.name,
            config.events,
            lambda value: not task.is_redundant(value),
            None if can_skip else gate.policy.same,
        )

    def _point(self, point: OperatingPoint) -> None:
        if self.status.points:
            self.status.chosen = self.status.points.index(point)
        self._promise()

    def _promise(self) -> None:
        """Say what holds now."""
        status = self.status
        learning, target = status.learning, status.target
        if status.degraded:
            status.promise = f"suspended while {status.degraded.partition(':')[0]}"
        elif not status.enabled:
            status.promise = "everything is inferred"
        elif learning is not None:
            live = learning.accuracy
            known = f", live {live.estimate:.3f} (at least {live.low:.3f})" if live else ""
            passes = f"; everything is inferred: {learning.opened_for}" if learning.open else ""
            status.promise = f"accuracy of {learning.target:g}, learned in service{known}{passes}"
        elif target is not None:
            kind = status.points[status.chosen].kind
            status.promise = f"{target[0]} of {target[1]:g} ({kind})"

    def _swap(self, setup: Setup) -> None:
        old = self._setup
        if old.identity == setup.identity and old.learning == setup.learning:
            setup.gate.take_over(old.gate)
            if self._seen_by is old.gate:
                self._seen_by = setup.gate
        else:  # another learner goes on from what this one keeps
            old.gate.close()
            self._loaded, self._not_kept = self._loaded and setup.gate.learner is None, ""
        tracker = self._tracker
        if self._away is not None and not self._away.goes_on(setup):
            self._close_away()
        new = self._install(setup)
        self._away = self._away or self._make_away()
        if setup.config.events != old.config.events or setup.identity != old.identity:
            self._send(tracker.finish(wall_time(time.time())))
            self._tracker = new
            self._quiet.forget_answer()
        log.info("%s: %s, %s is in force", self.name, self.status.bundle, self.status.promise)

    def _enable(self, enabled: bool) -> None:
        self._setup.gate.enabled = self.status.enabled = enabled
        self._promise()
        log.info("%s: filtering is %s", self.name, "on" if enabled else "off")

    def _choose(self, point: OperatingPoint) -> None:
        if point not in self.status.points:  # of a bundle that was replaced meanwhile
            return
        self._setup.gate.policy.knobs = capped(point.knobs, self._setup.config)
        self._point(point)
        log.info("%s: %s is in force", self.name, self.status.promise)

    # The cache on disk, or what is learned.

    def _snapshot_path(self) -> Path | None:
        return self.state / f"{self.name}.cache" if self._setup.config.cache.snapshot else None

    def _load(self, now_s: float) -> None:
        remote = self._setup.client.served.remote
        if remote is not None and not remote.is_known:
            return  # whose answers they are is not known yet
        self._loaded = True
        if self._setup.gate.learner is not None:
            self._keep(self._setup.gate, now_s)
            return
        path = self._snapshot_path()
        if path is None or not path.exists():
            return
        try:
            count = self._setup.gate.cache.load(path, self._setup.identity, now_s)
            log.info("%s: %d answers loaded from %s", self.name, count, path)
        except BundleError as error:
            log.warning("%s: cache snapshot not used: %s", self.name, error)

    def _keep(self, gate: Gate, now_s: float) -> None:
        """Go on from what was learned before, and keep what is learned from now on. Where it cannot
        be kept, the gate learns all the same."""
        assert gate.learner is not None
        gate.sample = self._setup.sample(self.state / f"{self.name}{SUFFIX}")
        try:
            keeper = self._setup.keeper(gate.learner, self.state / f"{self.name}{LEARNED}")
        except ConfigError as error:
            self._not_kept = f"{error}; what is learned is not kept"
            log.error("%s: %s", self.name, self._not_kept)
            return
        if self._seen_by is gate:  # a gate restores before its first input: this one has had it
            keeper.restore(now_s)
        gate.learner.keeper = keeper

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_s > SNAPSHOT_EVERY_S:
            self._save()

    def _save(self) -> None:
        """Write the snapshot, unless there was no input; a full disk is counted, not fatal."""
        self._saved_s = time.monotonic()
        path = self._snapshot_path()
        if path is None or not self._loaded:
            return
        assert self._now_s is not None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._setup.gate.cache.save(path, self._setup.identity, self._now_s)
        except OSError as error:
            self.status.counts["snapshot_error"] += 1
            if self._tell("snapshot"):
                log.error("%s: %s cannot be written: %s", self.name, path, error.strerror)
