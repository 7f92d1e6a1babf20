"""The daemon's settings, from TOML: one struct a table."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from infi_edge.cache import Eviction
from infi_edge.errors import ConfigError
from infi_edge.executors.endpoint import is_endpoint, parse_endpoint
from infi_edge.learning.settings import LearnSettings
from infi_edge.plugins import names_object
from infi_edge.tomlplace import Key, explain, line_of, read_toml


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the configuration. Units are in the names: _s seconds, _bytes, _hz, _c."""


Polygon = tuple[tuple[float, float], ...]
"""Corners (x, y) as fractions of the picture, 0..1."""


class CameraConfig(Table, frozen=True):
    """width, height, fps: asked of the device; None: its own. freeze_s: a picture that stays
    identical for so long is a fault. keep_jpeg: pass a camera's JPEGs on undecoded."""

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    freeze_s: float = 60.0
    keep_jpeg: bool = True


class MicrophoneConfig(Table, frozen=True):
    """rate_hz: asked of the device; None: the filter's own, else resampled from what it has.
    buffer_s: how much is kept while the gate is busy."""

    rate_hz: int | None = None
    buffer_s: float = 10.0


class ImuConfig(Table, frozen=True):
    """rate_hz: samples a second asked of the sensor; None: the filter's own. buffer_s: as above.
    channels: names of the columns of a serial line. scale: factors to SI units by channel.
    gap_s: a pause between samples so long ends a window; None: five sample times."""

    rate_hz: float | None = None
    buffer_s: float = 10.0
    channels: tuple[str, ...] = ()
    scale: dict[str, float] = {}
    gap_s: float | None = None


class SourceCacheConfig(Table, frozen=True):
    """entries, max_bytes, max_age_s: the bounds. snapshot: keep the answers across restarts, in
    the state folder."""

    entries: int = 4096
    max_bytes: int = 8 << 20
    max_age_s: float | None = None
    eviction: Eviction = "oldest"
    snapshot: bool = False


class EventsConfig(Table, frozen=True):
    """begin_s: wanted for so long before an event begins. end_s: not wanted for so long before it
    ends. still_s: how often one that goes on is told again. cool_down_s: after an end, no new one.
    """

    begin_s: float = 0.0
    end_s: float = 10.0
    still_s: float = 60.0
    cool_down_s: float = 0.0


class SourceConfig(Table, frozen=True):
    """One stream and its gate.

    address: see `infi-edge run --help`. filter: the bundle; may be left out where one is learned.
    model: a name in [models].
    learn: go on learning in service, from the filter or from nothing; learning: how.
    task, decoder, same, labels, modality, preprocess: the workload and its inputs, where no filter
    knows them; as the options of `infi-edge record` (labels: the names themselves).
    head: of a partitioned model: it runs here, `model` is its tail.
    enabled false: everything is inferred. target_accuracy, target_recall: another row of the
    bundle's table; of a source that learns, what it holds.
    max_consecutive_filtered: inputs. heartbeat_s: seconds.
    rate_hz: at most so many pictures a second; of a recording without times, its rate.
    start, end, fast: of a recording: the part, as fractions; as fast as possible, or as recorded.
    stall_s: no input for so long is a fault. pre_roll_s: inputs kept from before the gate opened.
    masks: polygons that are blanked. regions: polygons outside of which all is blanked.
    scene_change: pass inputs through while the whole picture changes.
    """

    address: str
    model: str
    filter: str = ""
    learn: bool = False
    task: str = ""
    decoder: str = ""
    same: str = "exact"
    labels: tuple[str, ...] = ()
    modality: str | None = None
    preprocess: dict[str, Any] = {}
    learning: LearnSettings = LearnSettings()
    head: str | None = None
    enabled: bool = True
    target_accuracy: float | None = None
    target_recall: float | None = None
    max_consecutive_filtered: int | None = None
    heartbeat_s: float | None = None
    rate_hz: float | None = None
    start: float = 0.0
    end: float = 1.0
    fast: bool = False
    stall_s: float = 10.0
    pre_roll_s: float = 0.0
    masks: tuple[Polygon, ...] = ()
    regions: tuple[Polygon, ...] = ()
    scene_change: bool = True
    camera: CameraConfig = CameraConfig()
    microphone: MicrophoneConfig = MicrophoneConfig()
    imu: ImuConfig = ImuConfig()
    cache: SourceCacheConfig = SourceCacheConfig()
    events: EventsConfig = EventsConfig()


class OffloadConfig(Table, frozen=True):
    """How a model on a server is used.

    send: `auto` goes by the model: its input tensors, or pictures and texts as BYTES. jpeg_quality:
    of pictures that are no JPEGs yet. deadline_s: of one input, retries included. retries: after
    the first attempt. max_response_bytes: of an answer; a larger one is an error. window: requests
    under way at a time.
    when_down: what becomes of an input while the server cannot be used: `queue` it and answer it
    later; answer it with the model `local`; `reuse` the last answer, up to max_stale_s old, marked
    as stale; `drop` it. Nothing of it goes uncounted. local, local_decoder: a name in [models], and
    the decoder of that model where it is not the filter's.
    spool: where the queue is, `disk` (in the state folder; survives a restart) or `memory`.
    spool_bytes: its bound. spool_order: `oldest` first and when full what is new is refused, or
    `newest` first and when full the oldest is dropped.
    at_start: `wait` until the server is there, or `fail`.
    ca_file, cert_file, key_file: of TLS. token_file, token_env: where a bearer token is.
    """

    send: Literal["auto", "tensor", "jpeg"] = "auto"
    jpeg_quality: int = 90
    deadline_s: float = 5.0
    retries: int = 2
    max_response_bytes: int = 64 << 20
    window: int = 4
    when_down: Literal["queue", "local", "reuse", "drop"] = "drop"
    local: str = ""
    local_decoder: str = ""
    max_stale_s: float = 60.0
    spool: Literal["disk", "memory"] = "disk"
    spool_bytes: int = 64 << 20
    spool_order: Literal["oldest", "newest"] = "oldest"
    at_start: Literal["wait", "fail"] = "wait"
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    token_file: str | None = None
    token_env: str | None = None


class ModelConfig(Table, frozen=True):
    """path: a .tflite file or `package.module:function`. executor: instead, a model on a server:
    grpc://HOST:8001/MODEL or http(s)://HOST/v2/models/MODEL. version: of a callable. threads: CPU.
    deadline_s: an inference that takes longer is given up and counted."""

    path: str = ""
    executor: str = ""
    version: str = ""
    threads: int = 1
    allow_other: bool = False
    deadline_s: float = 60.0
    offload: OffloadConfig = OffloadConfig()

    @property
    def place(self) -> str:
        """The file, the function or the server."""
        return self.path or self.executor


class JsonlSinkConfig(Table, frozen=True, tag="jsonl", tag_field="kind"):
    """path: a file, appended to; `-` for standard output. max_bytes: of a file before it is
    rotated. keep: rotated files. results, events: what is written."""

    path: str = "-"
    max_bytes: int = 10 << 20
    keep: int = 3
    results: bool = True
    events: bool = True


class MqttSinkConfig(Table, frozen=True, tag="mqtt", tag_field="kind"):
    """host, port: the broker. topic: under which everything is. password_file: never in the file
    itself. queue: messages kept while the broker is away. tls: with ca_file, cert_file, key_file.
    discovery: Home Assistant's prefix; empty: none. commands: obey enable, disable, target."""

    host: str = "127.0.0.1"
    port: int | None = None
    topic: str = "infi-edge"
    client_id: str = ""
    user: str = ""
    password_file: str | None = None
    queue: int = 10_000
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    discovery: str = "homeassistant"
    commands: bool = False
    results: bool = False
    events: bool = True


class HttpSinkConfig(Table, frozen=True, tag="http", tag_field="kind"):
    """url: each result or event is POSTed there as JSON. token_file: a bearer token.
    timeout_s: of one request. queue: messages kept while it is away."""

    url: str
    token_file: str | None = None
    ca_file: str | None = None
    timeout_s: float = 5.0
    queue: int = 1000
    results: bool = False
    events: bool = True


class SnapshotSinkConfig(Table, frozen=True, tag="snapshots", tag_field="kind"):
    """folder: the picture or sound of each event's beginning. max_bytes, max_days: its bounds."""

    folder: str
    max_bytes: int = 256 << 20
    max_days: float = 30.0


SinkConfig = JsonlSinkConfig | MqttSinkConfig | HttpSinkConfig | SnapshotSinkConfig


class WebConfig(Table, frozen=True):
    """The status page and /metrics. bind: HOST:PORT; wider than this machine it demands
    token_file. pictures: show what a source sees."""

    bind: str = "127.0.0.1:8765"
    token_file: str | None = None
    pictures: bool = False


class BudgetConfig(Table, frozen=True):
    """max_inferences_per_s: over all sources. max_cpu: cores used by the daemon's processes.
    max_temperature_c: of the processor. Over any of them, the last answer is given again while it
    is at most max_stale_s old; after that inputs are dropped."""

    max_inferences_per_s: float | None = None
    max_stale_s: float = 60.0
    max_cpu: float | None = None
    max_temperature_c: float | None = None


class Config(Table, frozen=True):
    """All of it. Paths are relative to the configuration file.

    state: the folder of cache snapshots and whatever else is kept. plugins: modules or .py files
    of one's own, imported first. flush_s: how long results may wait before they are written.
    """

    sources: dict[str, SourceConfig]
    models: dict[str, ModelConfig]
    sinks: dict[str, SinkConfig] = {}
    web: WebConfig | None = None
    budget: BudgetConfig = BudgetConfig()
    state: str = "state"
    flush_s: float = 1.0
    plugins: tuple[str, ...] = ()


def load_config(path: str | Path) -> Config:
    """Read a TOML file.

    Raises ConfigError for what is no TOML, an unknown key, a wrong type, an impossible value or a
    missing file, with the line and what to do.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        raw = read_toml(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a UnicodeDecodeError, too
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        config = msgspec.convert(raw, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}, {_explained(text, raw, error)}") from error
    config = _relative_to(config, Path(path).resolve().parent)
    for key, problem in problems(config):
        raise ConfigError(f"{path}, line {line_of(text, key)}: {'.'.join(key)} {problem}")
    return config


_TABLES: dict[str, Any] = {"sources": SourceConfig, "models": ModelConfig, "sinks": SinkConfig}


_SINKS: dict[Any, Any] = {k.__struct_config__.tag: k for k in get_args(SinkConfig)}


def _explained(text: str, raw: dict[str, Any], error: msgspec.ValidationError) -> str:
    # msgspec hides the names of tables (`$.sources[...]`): find the one that is wrong.
    for table, kind in _TABLES.items():
        entries = raw.get(table)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            try:
                msgspec.convert(entry, kind)
            except msgspec.ValidationError as inner:
                tag = str(entry.get("kind")) if isinstance(entry, dict) else ""
                known = _SINKS.get(tag, kind) if table == "sinks" else kind
                return explain(text, (table, name), str(inner), known)
    return explain(text, (), str(error), Config)


def check_config(config: Config) -> Config:
    """Return the configuration if it makes sense. Raises ConfigError."""
    for key, problem in problems(config):
        raise ConfigError(f"{'.'.join(key)} {problem}")
    return config


def _relative_to(config: Config, folder: Path) -> Config:
    def near(text: str) -> str:
        return str(folder / text) if text and os.path.exists(folder / text) else text

    def address(text: str) -> str:
        """A file whose name looks like a camera's address is ./camera:0."""
        return text if re.match(r"[a-z][a-z0-9]*:", text) else near(text)

    def below(text: str | None) -> str | None:
        return text if text in (None, "-") else str(folder / str(text))

    def files(table: Any) -> Any:
        """Paths that need not be there yet: they lie beside the configuration."""
        names = ("path", "folder", *_SECRETS)
        found = {n: below(getattr(table, n)) for n in names if hasattr(table, n)}
        return replace(table, **found)

    replace = msgspec.structs.replace
    return replace(
        config,
        state=str(folder / config.state),
        plugins=tuple(near(plugin) for plugin in config.plugins),
        sources={
            name: replace(
                source,
                address=address(source.address),
                filter=near(source.filter),
                head=source.head and near(source.head),
            )
            for name, source in config.sources.items()
        },
        models={
            name: replace(model, path=near(model.path), offload=files(model.offload))
            for name, model in config.models.items()
        },
        sinks={name: files(sink) for name, sink in config.sinks.items()},
        web=config.web and files(config.web),
    )


_SECRETS = ("token_file", "password_file", "ca_file", "cert_file", "key_file")

Problem = tuple[Key, str]
"""The key, and what is wrong with it."""


def problems(config: Config) -> Iterator[Problem]:
    """Yield everything impossible about a configuration that its types do not say."""
    if not config.sources:
        yield ("sources",), "is empty; add a [sources.NAME] with an address, a filter and a model"
    for name, source in config.sources.items():
        yield from _source_problems(("sources", name), source, config)
    for name, model in config.models.items():
        yield from _model_problems(("models", name), model, config)
    for name, sink in config.sinks.items():
        yield from _numbers(("sinks", name), sink)
        yield from _missing(("sinks", name), sink)
        yield from _sink_problems(("sinks", name), sink)
    yield from _twins(config)
    yield from _numbers(("budget",), config.budget)
    if config.web is not None:
        yield from _web_problems(config.web)
    for plugin in config.plugins:
        if plugin.endswith(".py") and not os.path.isfile(plugin):
            yield ("plugins",), f"names {plugin}, which does not exist"
    if not 0 <= config.flush_s <= 60:
        yield ("flush_s",), f"is {config.flush_s:g}; it is seconds, 0 to 60"


def _source_problems(at: Key, source: SourceConfig, config: Config) -> Iterator[Problem]:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", at[-1]):
        yield at, "is no name of a source; use letters, digits, - and _"
    if source.model not in config.models:
        known = ", ".join(config.models) or "none yet"
        yield (*at, "model"), f"names {source.model!r}, which is not in [models] ({known})"
    if ":" not in source.address and not os.path.exists(source.address):
        problem = f"names {source.address}, which does not exist; give a file, a folder or camera:0"
        yield (*at, "address"), problem
    if source.filter and not os.path.isfile(source.filter):
        remedy = "give the bundle that infi-convert train has written"
        yield (*at, "filter"), f"names {source.filter}, which does not exist; {remedy}"
    yield from _learning_problems(at, source)
    if source.head is not None and not os.path.isfile(source.head):
        remedy = "give the head.tflite that infi-convert split has written"
        yield (*at, "head"), f"names {source.head}, which does not exist; {remedy}"
    if not 0 <= source.start < source.end <= 1:
        key = "start" if source.start else "end"
        problem = f"is {getattr(source, key):g}; fractions are 0 <= start < end <= 1"
        yield (*at, key), problem
    yield from _target_problems(at, source)
    for key in ("masks", "regions"):
        for polygon in getattr(source, key):
            if len(polygon) < 3 or not all(0 <= c <= 1 for corner in polygon for c in corner):
                yield (*at, key), "has a polygon of less than 3 corners, or a corner not in 0..1"
    for channel, factor in source.imu.scale.items():
        if factor == 0 or not math.isfinite(factor):
            yield (*at, "imu", "scale", channel), f"is {factor:g}; it is a factor to SI units"
    yield from _numbers(at, source)
    for part in ("camera", "microphone", "imu", "cache", "events"):
        yield from _numbers((*at, part), getattr(source, part))


_WORKLOAD = ("task", "decoder", "same", "labels", "modality", "preprocess")
"""What a filter knows, and a source without one must say."""


def _learning_problems(at: Key, source: SourceConfig) -> Iterator[Problem]:
    usual = SourceConfig(address="", model="")
    said = [key for key in _WORKLOAD if getattr(source, key) != getattr(usual, key)]
    if source.filter:
        for key in said:
            yield (*at, key), "is what the filter was trained for; leave it out"
    elif not source.learn:
        remedy = "add it, or learn = true with task and target_accuracy"
        yield at, f"has no filter; {remedy}"
    else:
        for key in ("task", "target_accuracy"):
            if not getattr(source, key):
                yield at, f"learns without a filter and has no {key}; add it"
        if source.head is not None:
            yield (*at, "head"), "needs a filter, which reads its features; give one"
    if source.learn:
        yield from _learned_problems(at, source)
    elif source.learning != LearnSettings():
        yield (*at, "learning"), "is for a source that learns; add learn = true, or leave it out"


def _learned_problems(at: Key, source: SourceConfig) -> Iterator[Problem]:
    if source.target_recall is not None:
        yield (*at, "target_recall"), "cannot be held by what is learned; give target_accuracy"
    if source.cache.snapshot:
        problem = "is not for a source that learns: what it has learned is kept with its answers"
        yield (*at, "cache", "snapshot"), f"{problem}; leave it out"
    yield from _numbers((*at, "learning"), source.learning)
    impossible = source.learning.problem()
    if impossible is not None:
        yield (*at, "learning"), f"is impossible: {impossible}"


def _model_problems(at: Key, model: ModelConfig, config: Config) -> Iterator[Problem]:
    yield from _numbers(at, model)
    if bool(model.path) == bool(model.executor):
        yield at, "needs one of path (a file or module:name) and executor (a model on a server)"
    elif is_endpoint(model.path):
        yield (*at, "path"), f"names a model on a server; write executor = {model.path!r} instead"
    elif model.path:
        if not names_object(model.path) and not os.path.isfile(model.path):
            remedy = "give a .tflite file or module:name"
            yield (*at, "path"), f"names {model.path}, which does not exist; {remedy}"
    else:
        try:
            parse_endpoint(model.executor)
        except ConfigError as error:
            yield (*at, "executor"), f"is wrong: {error}"
    offload, here = model.offload, (*at, "offload")
    if offload != OffloadConfig() and not model.executor:
        yield here, "is for models on a server; give executor, or leave it out"
    yield from _numbers(here, offload)
    yield from _missing(here, offload)
    if not 1 <= offload.jpeg_quality <= 100:
        yield (*here, "jpeg_quality"), f"is {offload.jpeg_quality}; it is 1 to 100"
    if (offload.cert_file is None) != (offload.key_file is None):
        yield (*here, "cert_file"), "and key_file go together; give both or none"
    if (offload.when_down == "local") != bool(offload.local):
        yield (*here, "local"), 'and when_down = "local" go together; give both or none'
    elif offload.local:
        other = config.models.get(offload.local)
        if other is None or not other.path:
            known = ", ".join(n for n, m in config.models.items() if m.path) or "none yet"
            problem = f"names {offload.local!r}, which is no model here with a path ({known})"
            yield (*here, "local"), problem


def _target_problems(at: Key, source: SourceConfig) -> Iterator[Problem]:
    if source.target_accuracy is not None and source.target_recall is not None:
        yield (*at, "target_recall"), "stands beside target_accuracy; give one of them"
    for key in ("target_accuracy", "target_recall"):
        value = getattr(source, key)
        if value is not None and not 0 < value < 1:
            yield (*at, key), f"is {value:g}; it is a share, above 0 and below 1"


_MAY_BE_ZERO = {
    "retries",
    "start",
    "end",
    "pre_roll_s",
    "begin_s",
    "end_s",
    "cool_down_s",
    "keep",
    "still_s",
    "settle",
    "sample_bytes",
    "seed",
}
_MOST = {
    "entries": 1_000_000,
    "threads": 256,
    "port": 65_535,
    "window": 64,
    "retries": 100,
    "queue": 10_000_000,
}


def _numbers(at: Key, table: Table | LearnSettings) -> Iterator[Problem]:
    for key in table.__struct_fields__:
        value = getattr(table, key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        most = _MOST.get(key, 1 << 50 if key.endswith("_bytes") else 10**9)
        enough = value >= 0 if key in _MAY_BE_ZERO else value > 0
        if not enough:  # or not a number
            least = "at least 0" if key in _MAY_BE_ZERO else "above 0"
            yield (*at, key), f"is {value}; it must be {least}"
        elif value > most:
            yield (*at, key), f"is too large; it must be at most {most}"


def _sink_problems(at: Key, sink: SinkConfig) -> Iterator[Problem]:
    if isinstance(sink, HttpSinkConfig) and not re.match(r"https?://[^/]", sink.url):
        yield (*at, "url"), "is no URL; give http://HOST/PATH or https://HOST/PATH"
    if isinstance(sink, JsonlSinkConfig) and (not sink.path or os.path.isdir(sink.path)):
        yield (*at, "path"), "is no file; give one, or - for standard output"
    if isinstance(sink, SnapshotSinkConfig) and os.path.isfile(sink.folder):
        yield (*at, "folder"), f"names {sink.folder}, which is a file"


def _twins(config: Config) -> Iterator[Problem]:
    """Two sinks that would write over each other, or throw each other out."""
    seen: dict[object, str] = {}
    for name, sink in config.sinks.items():
        place: object = None
        if isinstance(sink, MqttSinkConfig):
            place = (sink.host, sink.port, sink.client_id or sink.topic)
        elif isinstance(sink, (JsonlSinkConfig, SnapshotSinkConfig)):
            place = sink.path if isinstance(sink, JsonlSinkConfig) else sink.folder
        if place is not None and place in seen:
            yield ("sinks", name), f"goes to the same place as sinks.{seen[place]}; leave one out"
        seen[place] = name


def _missing(at: Key, table: Table) -> Iterator[Problem]:
    for key in _SECRETS:
        path = getattr(table, key, None)
        if path is not None and not os.path.isfile(path):
            yield (*at, key), f"names {path}, which does not exist"


LOCAL: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")


def split_bind(bind: str) -> tuple[str, int] | None:
    """Return (host, port) of HOST:PORT or [HOST]:PORT, or None."""
    host, colon, port = bind.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        return None
    return host.strip("[]"), int(port)


def _web_problems(web: WebConfig) -> Iterator[Problem]:
    place = split_bind(web.bind)
    if place is None:
        yield ("web", "bind"), f"is {web.bind!r}; it is HOST:PORT, as in 127.0.0.1:8765"
    elif place[0] not in LOCAL and web.token_file is None:
        yield ("web", "bind"), "is open to others; give web.token_file, a file with a secret"
    yield from _missing(("web",), web)
