"""The daemon: sources with their gates, shared models, sinks; reloaded, watched, stopped."""

from __future__ import annotations

import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from infi_edge import __version__
from infi_edge.budget import Budget, Share
from infi_edge.bundle import Manifest, OperatingPoint, operating_point
from infi_edge.capture.address import open_source, scheme_of
from infi_edge.capture.source import Source
from infi_edge.config import (
    Config,
    JsonlSinkConfig,
    ModelConfig,
    MqttSinkConfig,
    SinkConfig,
    SnapshotSinkConfig,
    SourceConfig,
    WebConfig,
    load_config,
)
from infi_edge.errors import ConfigError, InfiEdgeError
from infi_edge.machine import Machine, Processes
from infi_edge.notify import Notifier
from infi_edge.pipeline import Pipeline, wall_time
from infi_edge.plugins import load_plugin
from infi_edge.preprocess import AudioSpec, ImageSpec
from infi_edge.served import ServedModel, file_stamp
from infi_edge.setups import Setup, make_setup, trained_rate_hz
from infi_edge.sinks import make_sink
from infi_edge.sinks.outlet import Outlet
from infi_edge.status import SourceStatus, Status
from infi_edge.tomlplace import line_of
from infi_edge.types import Image
from infi_edge.workload import is_callable_name

if TYPE_CHECKING:
    from infi_edge.web.server import WebServer

log = logging.getLogger("infi_edge")

POLL_S = 0.25
WATCH_FILES_S = 2.0
MACHINE_EVERY_S = 5.0
STOP_S = 1.8
DRAIN_S = 10.0
QUEUE = 1000
HUNG_S = 10.0
"""A source's thread that has not come round for so long hangs; the watchdog is not fed then."""


class Daemon:
    """Runs a configuration; also the `Control` of the page and of MQTT.

    daemon = Daemon(load_config("yard.toml"), Path("yard.toml"))
    daemon.run()        # until every source has ended, or stop() from another thread
    """

    def __init__(self, config: Config, path: Path | None = None, must_open: bool = False) -> None:
        """path: of the configuration, watched and read again. must_open: a source that cannot be
        opened the first time is an error, as on the command line.

        Raises InfiEdgeError if something does not fit.
        """
        self._config, self._path, self._must_open = config, path, must_open
        if path is not None:  # modules that it names lie beside it
            sys.path.insert(0, str(path.resolve().parent))
        for plugin in config.plugins:
            load_plugin(plugin)
        self._stopping = self._reloading = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._budget = Budget(config.budget)
        self._machine, self._processes = Machine(), Processes()
        self._notifier = Notifier()
        self._begun_s = time.monotonic()
        self._status = Status(__version__, wall_time(time.time()))
        self._changing = threading.Lock()
        self._outlets: dict[str, Outlet] = {}
        self._rates_hz: dict[str, float] = {}
        self._models: dict[str, ServedModel] = {}
        self._retired: list[ServedModel] = []
        self.pipelines: dict[str, Pipeline] = {}
        self._leaving: list[Pipeline] = []
        self.left: list[SourceStatus] = []
        """Of sources that a reload has taken away, or begun anew."""
        self._broken: set[Pipeline] = set()
        self._hung: set[Pipeline] = set()
        self._models, self._setups = self._build(config)
        self._seen = self._watched(config)
        self._settling: dict[str, tuple[int, int]] | None = None

    # Building.

    def _load_models(self, config: Config) -> dict[str, ServedModel]:
        """Return the models in use; one whose settings are as before is kept."""
        used = {source.model for source in config.sources.values()}
        used |= {config.models[name].offload.local for name in used} - {""}
        models: dict[str, ServedModel] = {}
        try:
            for name in used:
                known = self._models.get(name)
                wanted = config.models[name]
                current = known is not None and known.config == wanted
                if known is not None and current and known.stamp == file_stamp(wanted.path):
                    models[name] = known
                else:
                    with self._placed("models", name):
                        self._check_code(known, wanted)
                        models[name] = ServedModel(name, wanted)
        except InfiEdgeError:
            self._close_unused(models)
            raise
        return models

    def _check_code(self, known: ServedModel | None, wanted: ModelConfig) -> None:
        """Refuse another version of code that is loaded: Python reads a module once."""
        if known is None or not is_callable_name(wanted.path) or known.config.path != wanted.path:
            return
        if known.config.version != wanted.version:
            raise ConfigError(f"{wanted.path} is read at the start only; start the daemon again")

    def _check_source(self, name: str, setup: Setup) -> None:
        """Raise what opening the source would, as far as it can be known without the device."""
        # On the command line there is nothing to fall back on: opening it once is enough.
        if self._path is not None or scheme_of(setup.config.address) is not None:
            self._open(name)(setup.config, setup.manifest).close()

    def _open(self, name: str) -> Callable[[SourceConfig, Manifest], Source]:
        def open_it(config: SourceConfig, manifest: Manifest) -> Source:
            if scheme_of(config.address) is None and config.rate_hz is None:
                config = msgspec.structs.replace(config, rate_hz=trained_rate_hz(manifest))
            spec = manifest.preprocess if config.head is None else ImageSpec()
            return open_source(name, config, spec, self._must_open)

        return open_it

    def _make_outlets(self, config: Config, setups: dict[str, Setup]) -> dict[str, Outlet]:
        """The outlets of a configuration; those whose settings are as before stay open."""
        fast = all(s.fast and scheme_of(s.address) is None for s in config.sources.values())
        specs = {name: setup.manifest.preprocess for name, setup in setups.items()}
        rates_hz = {n: float(s.rate_hz) for n, s in specs.items() if isinstance(s, AudioSpec)}
        before = _sinks(self._config)
        outlets: dict[str, Outlet] = {}
        made: list[Outlet] = []
        try:
            for name, sink in _sinks(config).items():
                known = self._outlets.get(name)
                heard = isinstance(sink, SnapshotSinkConfig) and rates_hz != self._rates_hz
                if known is None or sink != before.get(name) or heard:
                    place = make_sink(name, sink, self, rates_hz)
                    known = Outlet(name, place, QUEUE, config.flush_s, lossless=fast)
                    made.append(known)
                outlets[name] = known
        except Exception:
            for outlet in made:
                outlet.close(0.5)
            raise
        self._rates_hz = rates_hz
        return outlets

    def _make_pipeline(self, name: str, setup: Setup) -> Pipeline:
        pictures = self._config.web is not None and self._config.web.pictures
        outlets = self._outlets.values()
        state = Path(self._config.state)
        return Pipeline(name, setup, self._open(name), outlets, state, pictures)

    # Running.

    def run(self) -> None:
        """Run until every source has ended, or `stop`.

        Raises InfiEdgeError if the only sources there are cannot be opened or break for good.
        """
        web: WebServer | None = None
        try:
            self._make_state()
            web = self._serve()
            self._outlets = self._make_outlets(self._config, self._setups)
            for name, setup in self._setups.items():
                self.pipelines[name] = self._make_pipeline(name, setup)
                self.pipelines[name].thread.start()
            if web is not None:
                log.info("the page is at %s", web.address)
            self._notifier.ready()
            self._watch()
        finally:
            self._notifier.stopping()
            self._end(web)
            self._notifier.close()
        pipelines = list(self.pipelines.values())
        first = pipelines[0].error if all(p.error for p in pipelines) else None
        if first is not None and not self._stopping:
            self._broken.add(pipelines[0])
            self._tell_broken()
            raise first
        self._tell_broken()

    def _make_state(self) -> None:
        """Make the state folder of a configuration, where results may go too."""
        if self._path is None:
            return
        try:
            Path(self._config.state).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._config.state} cannot be made: {error.strerror}") from error

    def _watch(self) -> None:
        looked_s = machine_s = 0.0
        while self._wait():
            if not any(p.thread.is_alive() for p in self.pipelines.values()):
                return
            if all(outlet.broken for outlet in self._outlets.values()):
                return
            self._tell_broken()
            self._let_go()
            now_s = time.monotonic()
            self._feed_watchdog(now_s)
            if now_s - machine_s >= MACHINE_EVERY_S:
                machine_s = now_s
                self._read_machine()
            if self._path is not None and now_s - looked_s >= WATCH_FILES_S:
                looked_s = now_s
                self._look_for_changes()
            if self._reloading:
                self._reloading = False
                self.reload()

    def _wait(self) -> bool:
        """Wait for the next look, or to be woken; return whether to go on."""
        # Not an Event: a signal handler that sets it may meet its lock, held by this thread.
        with suppress(Empty):
            self._wake.get(timeout=POLL_S)
        return not self._stopping

    def _tell_broken(self) -> None:
        """Log, once, what has ended a source for good."""
        broken = {p for p in self.pipelines.values() if p.error is not None}
        for pipeline in broken - self._broken:
            log.error("%s: %s", pipeline.name, pipeline.error)
        self._broken = broken

    def _let_go(self) -> None:
        """Let go of what a reload has replaced, once nothing runs in it any more."""
        self._leaving = [p for p in self._leaving if p.thread.is_alive()]
        running = [p for p in self.pipelines.values() if p.thread.is_alive()]
        setups = [p.setup for p in running + self._leaving]
        used = [s.client.served for s in setups] + [s.local.served for s in setups if s.local]
        for model in [m for m in self._retired if m not in used]:
            model.close()
            self._retired.remove(model)

    def _feed_watchdog(self, now_s: float) -> None:
        alive = [p for p in self.pipelines.values() if p.thread.is_alive()]
        stuck = {p for p in alive if now_s - p.progress_s >= HUNG_S}
        hung = stuck | {p for p in alive if p.setup.client.served.hangs}
        for pipeline in hung:
            what = f"its driver hangs, for more than {HUNG_S:g} s now"
            if pipeline not in stuck:
                what = f"its model {pipeline.setup.client.served.name} hangs"
            pipeline.status.state, pipeline.status.sentence = "failing", what
            if pipeline not in self._hung:
                log.error("%s: %s", pipeline.name, what)
        self._hung = hung
        if not hung:
            self._notifier.watchdog()

    def _read_machine(self) -> None:
        status, machine, use = self._status, self._machine.read(), self._processes.read()
        status.cpu = use.cpu
        status.memory_bytes = use.rss_bytes if use.pss_bytes is None else use.pss_bytes
        status.temperature_c = machine.temperature_c
        status.throttled, status.under_voltage = machine.throttled, machine.under_voltage
        self._budget.step(status.cpu, status.temperature_c)
        status.budget = self._budget.sentence
        most_c, now_c = self._config.budget.max_temperature_c, status.temperature_c
        is_hot = most_c is not None and now_c is not None and now_c > most_c
        for pipeline in self.pipelines.values():
            pipeline.freeze(is_hot or bool(status.throttled))

    def _serve(self) -> WebServer | None:
        if self._config.web is None:
            return None
        server = _web_server(self, self._config.web)
        server.start()
        return server

    def stop(self) -> None:
        """End `run` within two seconds; from any thread or signal handler."""
        self._stopping = True
        self._wake.put(None)

    def _end(self, web: WebServer | None = None) -> None:
        """Stop everything: what is in flight is given up and counted."""
        until_s = time.monotonic() + STOP_S
        pipelines = [*self.pipelines.values(), *self._leaving]
        for pipeline in pipelines:
            pipeline.close()
        models = [*self._models.values(), *self._retired]
        for model in models:
            model.close()
        for pipeline in pipelines:
            if pipeline.thread.ident is not None:
                pipeline.thread.join(max(until_s - 0.8 - time.monotonic(), 0.0))
        if not self._stopping:  # recordings that have ended: there is time for the sinks
            self._drain()
            until_s = time.monotonic() + STOP_S
        ends: list[Callable[[], None]] = [] if web is None else [web.close]
        ends += [partial(outlet.close, 0.7) for outlet in self._outlets.values()]
        closing = [threading.Thread(target=end, daemon=True) for end in ends]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(max(until_s - time.monotonic(), 0.0))
        for model in models:
            model.join(max(min(0.5, until_s - time.monotonic()), 0.0))
        left = [p.name for p in pipelines if p.thread.is_alive()]
        if left:
            log.warning("%s did not stop in time", ", ".join(left))

    def _drain(self) -> None:
        until_s = time.monotonic() + DRAIN_S
        for outlet in self._outlets.values():
            while not (outlet.broken or outlet.drain(POLL_S)):
                if self._stopping or time.monotonic() >= until_s:
                    break

    @property
    def stuck(self) -> bool:
        """Whether threads are left that a normal exit would wait for or crash in."""
        pipelines = (*self.pipelines.values(), *self._leaving)
        models = (*self._models.values(), *self._retired)
        return any(p.thread.is_alive() for p in pipelines) or any(m.stuck for m in models)

    # Reloading.

    def request_reload(self) -> None:
        """Read the configuration and the bundles again soon; from a signal handler."""
        self._reloading = True
        self._wake.put(None)

    def reload(self) -> bool:
        """Read the configuration and the bundles again; return whether they are in force.

        What is new is built first; anything wrong with it leaves the old running.
        """
        if self._path is None:
            return False
        self._notifier.reloading()
        self._seen = self._watched(self._config)
        own = file_stamp(str(self._path))
        try:
            config = load_config(self._path)
            seen = self._watched(config) | {str(self._path): own}
            with self._changing:
                self._apply(config)
        except InfiEdgeError as error:
            return self._refuse(str(error))
        except Exception as error:  # of a plugin: no reason to stop what runs
            log.exception("unexpected error in a new configuration")
            return self._refuse(f"unexpected: {error!r}")
        finally:
            self._notifier.ready()
        self._seen = seen
        self._status.reloads["done"] += 1
        self._status.reload_sentence = ""
        log.info("the configuration was read again")
        return True

    def _refuse(self, sentence: str) -> bool:
        self._status.reloads["refused"] += 1
        self._status.reload_sentence = sentence
        log.error("the new configuration is refused, the old one runs on: %s", sentence)
        return False

    def _apply(self, config: Config) -> None:
        models, setups = self._build(config)
        try:
            outlets = self._make_outlets(config, setups)
        except Exception:
            self._close_unused(models)
            raise
        kept = {k: getattr(self._config, k) for k in ("web", "state", "plugins", "flush_s")}
        late = [key for key, value in kept.items() if getattr(config, key) != value]
        if late:
            log.warning("%s: takes effect at the next start", ", ".join(late))
        self._budget.configure(config.budget)
        self._config = msgspec.structs.replace(config, **kept)
        old_outlets, self._outlets = self._outlets, outlets
        for name in set(self.pipelines) - set(setups):
            self._leave(self.pipelines.pop(name))
        for name, setup in setups.items():
            self._put(name, setup)
        self._setups = setups
        for name, outlet in old_outlets.items():
            if outlets.get(name) is not outlet:
                outlet.close(0.7)
        self._retired += [m for m in self._models.values() if m not in models.values()]
        self._models = models

    def _build(self, config: Config) -> tuple[dict[str, ServedModel], dict[str, Setup]]:
        """Load models and bundles and look at the addresses; nothing is left of it if it fails."""
        models = self._load_models(config)
        try:
            setups: dict[str, Setup] = {}
            for name, source in config.sources.items():
                with self._placed("sources", name):
                    allowance = Share(self._budget)
                    served = models[source.model]
                    local = models.get(served.config.offload.local)
                    setups[name] = setup = make_setup(source, served, allowance, local)
                    if not self._same_stream(name, setup):
                        self._check_source(name, setup)
        except Exception:
            self._close_unused(models)
            raise
        return models, setups

    @contextmanager
    def _placed(self, *key: str) -> Iterator[None]:
        """Say of which table of the configuration an error is."""
        try:
            yield
        except InfiEdgeError as error:
            if self._path is None:
                raise
            text = ""
            with suppress(OSError, UnicodeDecodeError):
                text = self._path.read_text(encoding="utf-8")
            place = f"{self._path}, line {line_of(text, key)}"
            raise type(error)(f"{place}: {'.'.join(key)}: {error}") from error

    def _close_unused(self, models: dict[str, ServedModel]) -> None:
        for model in models.values():
            if model not in self._models.values():
                model.close()

    def _put(self, name: str, setup: Setup) -> None:
        """Bring a source under a new setup: between two inputs if its stream stays, else anew."""
        pipeline = self.pipelines.get(name)
        if pipeline is not None and self._same_stream(name, setup):
            pipeline.route(self._outlets.values())
            if not pipeline.setup.equals(setup):
                pipeline.swap(setup)
            return
        if pipeline is not None:
            self._leave(pipeline)
        self.pipelines[name] = self._make_pipeline(name, setup)
        self.pipelines[name].thread.start()

    def _leave(self, pipeline: Pipeline) -> None:
        """Close a pipeline, and wait a moment: its device may be wanted again, and its sinks."""
        self._leaving.append(pipeline)
        self.left.append(pipeline.status)
        pipeline.close()
        pipeline.thread.join(2.0)

    def _same_stream(self, name: str, setup: Setup) -> bool:
        """Whether a source may go on capturing under a new setup; or a recording has ended."""
        pipeline = self.pipelines.get(name)
        if pipeline is None or pipeline.error is not None:
            return False
        old = pipeline.setup
        return (
            _capture(old.config) == _capture(setup.config)
            and old.manifest.preprocess == setup.manifest.preprocess
        )

    def _watched(self, config: Config) -> dict[str, tuple[int, int]]:
        paths = [s.filter for s in config.sources.values()]
        paths += [s.head for s in config.sources.values() if s.head]
        paths += [m.path for m in config.models.values() if m.path]
        return {p: file_stamp(p) for p in [str(self._path or ""), *paths] if Path(p).is_file()}

    def _look_for_changes(self) -> None:
        now = self._watched(self._config)
        if now == self._seen:
            self._settling = None
        elif now == self._settling:  # the same twice: whoever writes it has finished
            self._settling = None
            self._reloading = True
        else:
            self._settling = now

    # Control.

    def status(self) -> Status:
        """What is going on; the counters in it are live."""
        status = self._status
        status.uptime_s = time.monotonic() - self._begun_s
        status.sources = [p.look() for p in list(self.pipelines.values())]
        status.sinks = [outlet.status() for outlet in self._outlets.values()]
        status.links = [
            model.remote.status(name)
            for name, model in list(self._models.items())
            if model.remote is not None
        ]
        return status

    def set_enabled(self, source: str, enabled: bool) -> None:
        """Let a gate filter, or pass everything."""
        self._pipeline(source).enable(enabled)

    def set_target(self, source: str, measure: str, target: float) -> OperatingPoint:
        """Choose another row of a bundle's table, until the next reload; return it."""
        if measure not in ("accuracy", "recall"):
            raise ConfigError(f"{measure!r} is no measure; it is accuracy or recall")
        if not 0 < target < 1:
            raise ConfigError(f"{target:g} is no target; it is above 0 and below 1")
        pipeline = self._pipeline(source)
        if pipeline.setup.config.learn:
            raise ConfigError(
                f"{source} learns in service; change its target_accuracy in the configuration"
            )
        point = operating_point(pipeline.setup.manifest, **{f"target_{measure}": target})
        pipeline.choose(point)
        return point

    def picture(self, source: str) -> Image | None:
        """The last input of a source as a picture, masked, or None."""
        pipeline = self._pipeline(source)
        sample = pipeline.last
        setup = pipeline.setup
        pictures = setup.head is not None or setup.manifest.modality in ("image", "video")
        if sample is None or not pictures:
            return None
        data = sample.data[-1] if isinstance(sample.data, list) else sample.data
        return setup.gate.masked(data)

    def _pipeline(self, source: str) -> Pipeline:
        try:
            return self.pipelines[source]
        except KeyError:
            known = ", ".join(self.pipelines)
            raise ConfigError(f"there is no source {source!r}; it is one of {known}") from None


def check(path: str | Path) -> Config:
    """Check a configuration as far as it can be without running it: files, bundles, models,
    addresses, packages. Raises InfiEdgeError."""
    config = load_config(path)
    daemon = Daemon(config, Path(path))
    try:
        for name, sink in config.sinks.items():
            with daemon._placed("sinks", name, "path"):
                _check_place(sink, Path(config.state))
        if any(isinstance(sink, MqttSinkConfig) for sink in config.sinks.values()):
            importlib.import_module("infi_edge.sinks.mqtt")
        if config.web is not None:
            _web_server(daemon, config.web)
    finally:
        daemon._end()
    return config


def _check_place(sink: SinkConfig, state: Path) -> None:
    """Raise ConfigError if results have no folder; the state folder is made at the start."""
    if not isinstance(sink, JsonlSinkConfig) or sink.path == "-":
        return
    folder = Path(sink.path).absolute().parent
    if not folder.is_dir() and folder != state.absolute():
        raise ConfigError(f"lies in {folder}, which does not exist; make the folder")


def _web_server(daemon: Daemon, config: WebConfig) -> WebServer:
    from infi_edge.web.server import WebServer  # an extra: what it needs may not be here

    return WebServer(daemon, config)


def _sinks(config: Config) -> dict[str, SinkConfig]:
    return config.sinks or {"results": JsonlSinkConfig()}


def _capture(config: SourceConfig) -> tuple[object, ...]:
    """The settings that a running source cannot change."""
    names = ("address", "rate_hz", "start", "end", "fast", "stall_s", "camera", "microphone", "imu")
    return tuple(getattr(config, name) for name in names)
