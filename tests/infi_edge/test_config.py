"""The daemon's TOML: what is read, where its paths point, what is refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from infi_edge.config import (
    BudgetConfig,
    CameraConfig,
    Config,
    EventsConfig,
    HttpSinkConfig,
    ImuConfig,
    JsonlSinkConfig,
    MicrophoneConfig,
    ModelConfig,
    MqttSinkConfig,
    SnapshotSinkConfig,
    SourceCacheConfig,
    SourceConfig,
    WebConfig,
    check_config,
    load_config,
    problems,
    split_bind,
)
from infi_edge.errors import ConfigError

TEXT = """\
[sources.yard]
address = "camera:0"
filter = "yard.infi"
model = "m"
# more of the source

[models.m]
path = "own.model:infer"
# more of the model

[sinks.out]
kind = "jsonl"
# more of the sink

[web]
# more of the page

[budget]
# more of the budget
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "yard.infi").touch()
    return tmp_path / "yard.toml"


def write(path: Path, **more: str) -> list[str]:
    """Write a valid file with lines added to its tables; return its lines."""
    text = TEXT
    for table, lines in more.items():
        assert f"# more of the {table}" in text
        text = text.replace(f"# more of the {table}", lines)
    path.write_text(text)
    return text.split("\n")


def line(lines: list[str], beginning: str) -> int:
    return next(i for i, text in enumerate(lines, 1) if text.startswith(beginning))


def test_the_smallest_file_has_the_defaults(path, tmp_path):
    path.write_text(TEXT.split("[sinks.out]", maxsplit=1)[0])
    config = load_config(path)
    assert config == Config(
        sources={
            "yard": SourceConfig(address="camera:0", filter=str(tmp_path / "yard.infi"), model="m")
        },
        models={"m": ModelConfig(path="own.model:infer")},
        state=str(tmp_path / "state"),
    )


def test_every_key_is_read(path, tmp_path):
    for name in ("secret", "ca.pem", "c.pem", "k.pem", "own.py"):
        (tmp_path / name).touch()
    path.write_text("""
state = "kept"
flush_s = 0
plugins = ["own.py", "package.module"]
[sources.yard]
address = "rtsp://cam/1"
filter = "yard.infi"
model = "m"
enabled = false
target_recall = 0.9
max_consecutive_filtered = 30
heartbeat_s = 5
rate_hz = 2
start = 0.25
end = 0.5
fast = true
stall_s = 3.5
pre_roll_s = 2
masks = [[[0, 0], [1, 0], [0.5, 0.5]]]
regions = [[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], [[0, 0], [0, 1], [1, 1], [0.2, 0.1]]]
scene_change = false
camera = { width = 640, height = 480, fps = 15, freeze_s = 9, keep_jpeg = false }
microphone = { rate_hz = 16000, buffer_s = 4 }
imu = { rate_hz = 100, buffer_s = 3, channels = ["x", "y"], scale = { x = -9.81 }, gap_s = 1 }
cache = { entries = 10, max_bytes = 5000, max_age_s = 1.5, eviction = "lru", snapshot = true }
events = { begin_s = 0, end_s = 0, still_s = 0, cool_down_s = 3 }
[models.m]
path = "own.model:infer"
version = "3"
threads = 2
allow_other = true
deadline_s = 12
[sinks.lines]
kind = "jsonl"
path = "out.jsonl"
max_bytes = 1000
keep = 0
results = false
events = false
[sinks.broker]
kind = "mqtt"
host = "broker"
port = 8883
topic = "a/b"
client_id = "c"
user = "u"
password_file = "secret"
queue = 7
tls = true
ca_file = "ca.pem"
cert_file = "c.pem"
key_file = "k.pem"
discovery = ""
commands = true
results = true
events = false
[sinks.post]
kind = "http"
url = "https://x/y"
token_file = "secret"
ca_file = "ca.pem"
timeout_s = 1
queue = 3
[sinks.pictures]
kind = "snapshots"
folder = "pictures"
max_bytes = 99
max_days = 1.5
[web]
bind = "0.0.0.0:80"
token_file = "secret"
pictures = true
[budget]
max_inferences_per_s = 5
max_stale_s = 9
max_cpu = 1.5
max_temperature_c = 70
""")
    near = {name: str(tmp_path / name) for name in os.listdir(tmp_path)}
    corner = (0.0, 0.0)
    assert load_config(path) == Config(
        state=str(tmp_path / "kept"),
        flush_s=0.0,
        plugins=(near["own.py"], "package.module"),
        sources={
            "yard": SourceConfig(
                address="rtsp://cam/1",
                filter=near["yard.infi"],
                model="m",
                enabled=False,
                target_recall=0.9,
                max_consecutive_filtered=30,
                heartbeat_s=5.0,
                rate_hz=2.0,
                start=0.25,
                end=0.5,
                fast=True,
                stall_s=3.5,
                pre_roll_s=2.0,
                masks=((corner, (1.0, 0.0), (0.5, 0.5)),),
                regions=(
                    (corner, (1.0, 0.0), (1.0, 1.0)),
                    (corner, (0.0, 1.0), (1.0, 1.0), (0.2, 0.1)),
                ),
                scene_change=False,
                camera=CameraConfig(width=640, height=480, fps=15, freeze_s=9, keep_jpeg=False),
                microphone=MicrophoneConfig(rate_hz=16000, buffer_s=4),
                imu=ImuConfig(
                    rate_hz=100, buffer_s=3, channels=("x", "y"), scale={"x": -9.81}, gap_s=1
                ),
                cache=SourceCacheConfig(
                    entries=10, max_bytes=5000, max_age_s=1.5, eviction="lru", snapshot=True
                ),
                events=EventsConfig(begin_s=0, end_s=0, still_s=0, cool_down_s=3),
            )
        },
        models={
            "m": ModelConfig(
                path="own.model:infer", version="3", threads=2, allow_other=True, deadline_s=12
            )
        },
        sinks={
            "lines": JsonlSinkConfig(
                path=str(tmp_path / "out.jsonl"),
                max_bytes=1000,
                keep=0,
                results=False,
                events=False,
            ),
            "broker": MqttSinkConfig(
                host="broker",
                port=8883,
                topic="a/b",
                client_id="c",
                user="u",
                password_file=near["secret"],
                queue=7,
                tls=True,
                ca_file=near["ca.pem"],
                cert_file=near["c.pem"],
                key_file=near["k.pem"],
                discovery="",
                commands=True,
                results=True,
                events=False,
            ),
            "post": HttpSinkConfig(
                url="https://x/y",
                token_file=near["secret"],
                ca_file=near["ca.pem"],
                timeout_s=1,
                queue=3,
            ),
            "pictures": SnapshotSinkConfig(
                folder=str(tmp_path / "pictures"), max_bytes=99, max_days=1.5
            ),
        },
        web=WebConfig(bind="0.0.0.0:80", token_file=near["secret"], pictures=True),
        budget=BudgetConfig(
            max_inferences_per_s=5, max_stale_s=9, max_cpu=1.5, max_temperature_c=70
        ),
    )


def test_paths_are_relative_to_the_file_and_not_to_where_one_is(path, tmp_path, monkeypatch):
    for name in ("clip.mp4", "model.tflite"):
        (tmp_path / name).touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path.write_text(TEXT.replace("camera:0", "clip.mp4").replace("own.model:infer", "model.tflite"))
    config = load_config("../yard.toml")
    assert config.sources["yard"].address == str(tmp_path / "clip.mp4")
    assert config.sources["yard"].filter == str(tmp_path / "yard.infi")
    assert config.models["m"].path == str(tmp_path / "model.tflite")
    assert config.state == str(tmp_path / "state")


def test_absolute_paths_and_standard_output_stay_as_they_are(path, tmp_path):
    write(path, sink='path = "-"')
    path.write_text('state = "/var/lib/yard"\n' + path.read_text())
    config = load_config(path)
    assert config.state == "/var/lib/yard"
    assert config.sinks["out"].path == "-"


def test_a_file_named_like_a_camera_does_not_stand_in_for_it(path, tmp_path):
    (tmp_path / "camera:0").mkdir()
    write(path)
    assert load_config(path).sources["yard"].address == "camera:0"
    path.write_text(TEXT.replace('"camera:0"', '"./camera:0"'))
    assert Path(load_config(path).sources["yard"].address) == tmp_path / "camera:0"


def test_a_long_pipeline_is_an_address(path):
    pipeline = "gst:" + " ! ".join(["videoconvert"] * 300)
    path.write_text(TEXT.replace("camera:0", pipeline))
    assert load_config(path).sources["yard"].address == pipeline


UNKNOWN = [
    ("source", "colour = 1", "sources.yard.colour is unknown; it is one of address, "),
    ("source", "fliter = 1", r"sources.yard.fliter is unknown; did you mean filter\?"),
    ("source", "stall_ms = 500", "sources.yard.stall_ms is unknown; it is stall_s, in seconds"),
    ("source", "stall = 5", "sources.yard.stall is unknown; it is stall_s, in seconds"),
    ("source", "heartbeat_minutes = 5", "it is heartbeat_s, in seconds"),
    ("source", "rate = 5", "it is rate_hz, in times a second"),
    ("source", "cache.max_mb = 5", "cache.max_mb is unknown; it is max_bytes, in bytes"),
    ("source", "cache = { entrys = 5 }", r"cache.entrys is unknown; did you mean entries\?"),
    ("source", "events.end = 5", "events.end is unknown; it is end_s, in seconds"),
    ("source", '"two\\nlines" = 1', "is unknown"),
    ("model", "deadline_ms = 5", "models.m.deadline_ms is unknown; it is deadline_s, in seconds"),
    ("sink", "topic = 'x'", "sinks.out.topic is unknown"),
    ("sink", "keeep = 5", r"sinks.out.keeep is unknown; did you mean keep\?"),
    ("page", "port = 80", "web.port is unknown; it is one of bind, token_file, pictures"),
    ("budget", "max_temperature = 70", "it is max_temperature_c, in degrees Celsius"),
    ("budget", "max_temperature_f = 150", "it is max_temperature_c, in degrees Celsius"),
]
WRONG = [
    ("model", 'threads = "two"', "models.m.threads is str; it takes int"),
    ("model", "threads = 1.5", "models.m.threads is float; it takes int"),
    ("model", "threads = true", "models.m.threads is bool; it takes int"),
    ("model", "allow_other = 1", "models.m.allow_other is int; it takes bool"),
    ("source", 'stall_s = "5"', "is str; it takes float, in seconds: a number without quotes"),
    ("source", 'heartbeat_s = "5 min"', "heartbeat_s is str; it takes float, in seconds"),
    ("source", "rate_hz = 2024-01-01", "rate_hz"),
    ("source", "camera = 5", "sources.yard.camera is int; it takes a table"),
    ("source", 'cache = { eviction = "random" }', "'random'; it is one of oldest, lru, least-hit"),
    ("source", "cache.snapshot = 5", "snapshot is int; it takes bool"),
    ("source", "masks = 5", "sources.yard.masks is int; it takes array"),
    ("source", "masks = [[0.1, 0.2]]", "sources.yard.masks is float; it takes array"),
    ("source", "masks = [\n[[0.1, 0.2, 0.3]]]", "masks has 3 numbers in a place for 2"),
    ("source", "imu.scale.x = 'a'", "imu.scale"),
    ("budget", 'max_temperature_c = "hot"', "budget.max_temperature_c is str; it takes float"),
    ("page", "bind = 80", "web.bind is int; it takes str"),
]
IMPOSSIBLE = [
    ("source", "stall_s = 0", "sources.yard.stall_s is 0.0; it must be above 0"),
    ("source", "rate_hz = -1", "sources.yard.rate_hz"),
    ("source", "rate_hz = inf", "rate_hz is too large"),
    ("source", "rate_hz = nan", "rate_hz is nan; it must be above 0"),
    ("source", "pre_roll_s = -1", "pre_roll_s is -1.0; it must be at least 0"),
    ("source", "heartbeat_s = 0", "heartbeat_s"),
    ("source", "max_consecutive_filtered = 0", "max_consecutive_filtered"),
    ("source", "target_accuracy = 95", "target_accuracy is 95; it is a share"),
    ("source", "target_recall = 0", "target_recall is 0; it is a share"),
    ("source", "target_accuracy = 0.9\ntarget_recall = 0.9", "target_recall stands beside"),
    ("source", "start = 0.5\nend = 0.5", "start is 0.5; fractions are 0 <= start < end"),
    ("source", "end = 1.5", "yard.end is 1.5; fractions are 0 <= start"),
    ("source", "masks = [[[0, 0], [1, 1]]]", "masks has a polygon of less than 3 corners"),
    ("source", "regions = [[[0, 0], [1, 1], [0, 1.5]]]", "regions has .* a corner not in 0..1"),
    ("source", "regions = [[[0, 0], [1, 1], [0, nan]]]", "regions has .* a corner not in 0..1"),
    ("source", "camera.width = 0", "sources.yard.camera.width is 0; it must be above 0"),
    ("source", "camera.freeze_s = -1", "camera.freeze_s"),
    ("source", "microphone.rate_hz = 0", "microphone.rate_hz"),
    ("source", "imu.gap_s = 0", "imu.gap_s"),
    ("source", "imu.scale = { x = 0 }", "imu.scale.x is 0; it is a factor to SI units"),
    ("source", "imu.scale.x = inf", "imu.scale.x is inf"),
    ("source", "cache.entries = 0", "cache.entries is 0"),
    ("source", "cache.entries = 1" + "0" * 30, "cache.entries is too large; .* at most 1000000"),
    ("source", "cache.max_bytes = -1" + "0" * 400, "cache.max_bytes is -10+; it must be above 0"),
    ("source", "cache.max_age_s = 0.0", "cache.max_age_s"),
    ("source", "events.begin_s = -0.1", "events.begin_s"),
    ("model", "threads = 0", "models.m.threads is 0; it must be above 0"),
    ("model", "threads = 1000", "models.m.threads is too large"),
    ("model", "deadline_s = 0", "models.m.deadline_s"),
    ("sink", "max_bytes = 0", "sinks.out.max_bytes"),
    ("sink", "keep = -1", "sinks.out.keep is -1; it must be at least 0"),
    ("page", 'bind = "8765"', "web.bind is '8765'; it is HOST:PORT"),
    ("page", 'bind = "localhost:99999"', "web.bind"),
    ("page", 'bind = "localhost:²"', "web.bind"),
    ("page", 'bind = "0.0.0.0:8765"', "web.bind is open to others; give web.token_file"),
    ("page", 'bind = "[::]:8765"', "web.bind is open to others"),
    ("page", 'token_file = "absent"', "web.token_file names .*absent, which does not exist"),
    ("budget", "max_inferences_per_s = 0", "budget.max_inferences_per_s"),
    ("budget", "max_stale_s = -1", "budget.max_stale_s"),
    ("budget", "max_cpu = nan", "budget.max_cpu"),
]


@pytest.mark.parametrize(("table", "text", "words"), UNKNOWN + WRONG + IMPOSSIBLE)
def test_a_setting_that_makes_no_sense_is_named_with_its_line(path, refuses, table, text, words):
    lines = write(path, **{table: text})
    last = text.split("\n[", maxsplit=1)[0].split("\n")[-1].split(" = ")[0]
    number = line(lines, last if not text.startswith("start") else "start")
    with refuses(ConfigError, f"^{path}, line {number}: .*{words}"):
        load_config(path)


def test_what_is_written_below_an_array_of_many_lines_is_found(path, refuses):
    lines = write(path, source="masks = [\n  [[0.1, 0.1],\n[0.2, 0.2], [0.3, 0.3]],\n]\nfast = 5\n")
    with refuses(ConfigError, f"line {line(lines, 'fast')}: sources.yard.fast is int"):
        load_config(path)


def test_a_file_of_windows_is_read_and_its_lines_counted(path, refuses):
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert load_config(path).sources["yard"].model == "m"
    lines = write(path, source="\nfast = 5")
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with refuses(ConfigError, f"line {line(lines, 'fast')}: sources.yard.fast"):
        load_config(path)


@pytest.mark.parametrize(
    ("old", "new", "begins", "words"),
    [
        ('address = "camera:0"', "", "[sources.yard]", "sources.yard has no address; add it"),
        ('filter = "yard.infi"', "", "[sources.yard]", "sources.yard has no filter; add it"),
        ('path = "own.model:infer"', "", "[models.m]", "models.m needs one of path"),
        ('kind = "jsonl"', "", "[sinks.out]", "sinks.out has no kind; add it"),
        ('"jsonl"', '"json"', "kind", "'json'; it is one of http, jsonl, mqtt, snapshots"),
        ('"jsonl"', "[]", "kind", "sinks.out.kind is list|sinks.out.kind is array"),
        ("[sinks.out]", "[[sinks]]", "[[sinks]]", "sinks is array; it takes a table"),
        ("[sources.yard]", "[[sources]]", "[[sources]]", "sources is array; it takes a table"),
        ("[sources.yard]", "[source.yard]", "[source.yard]", r"source .*did you mean sources\?"),
        ("[budget]", "[bugdet]", "[bugdet]", r"bugdet is unknown; did you mean budget\?"),
        ("[sources.yard]", '[sources."a/b"]', "[sources.", "use letters, digits, - and _"),
        ("[sources.yard]", '[sources."höf"]', "[sources.", "use letters, digits, - and _"),
        ("[sources.yard]", '[sources.""]', "[sources.", "use letters, digits, - and _"),
        ('model = "m"', 'model = "n"', "model", r"names 'n', which is not in \[models\] \(m\)"),
        ("yard.infi", "absent.infi", "filter", "names absent.infi, which does not exist"),
        ("yard.infi", "", "[sources.yard]", "has no filter; add it, or learn = true with task"),
        ("camera:0", "absent.mp4", "address", "names absent.mp4, which does not exist; give a"),
        ("camera:0", "", "address", "names , which does not exist; give a file"),
        ("camera:0", "n" * 5000, "address", "which does not exist"),
        ("own.model:infer", "absent.tflite", "path", "which does not exist; give a .tflite"),
        ("own.model:infer", "n" * 5000, "path", "which does not exist; give a .tflite"),
    ],
)
def test_what_is_missing_or_misnamed_is_told_with_its_line(path, refuses, old, new, begins, words):
    assert old in TEXT
    text = TEXT.replace(old, new)
    path.write_text(text)
    with refuses(ConfigError, f"^{path}, line {line(text.splitlines(), begins)}: .*{words}"):
        load_config(path)


@pytest.mark.parametrize("key", ["password_file", "ca_file", "cert_file", "key_file"])
def test_a_file_of_a_sink_that_is_not_there_is_named(path, refuses, key):
    path.write_text(TEXT.replace('kind = "jsonl"', f'kind = "mqtt"\n{key} = "absent.pem"'))
    with refuses(ConfigError, f"sinks.out.{key} names .*absent.pem, which does not exist"):
        load_config(path)


def test_a_plugin_that_is_not_there_is_named(path, refuses):
    path.write_text('\nplugins = ["absent.py"]\n' + TEXT)
    with refuses(ConfigError, "line 2: plugins names absent.py, which does not exist"):
        load_config(path)


@pytest.mark.parametrize("text", ["", "[models]\n", "[sources]\n[models]\n"])
def test_a_file_without_a_source_is_refused(path, refuses, text):
    path.write_text(text)
    with refuses(ConfigError, "line [12]: .*sources"):
        load_config(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[source",
        b"a = 1\na = 2",
        b"\xff\xfe",
        b"address = camera:0",
        b'a = "two\nlines"',
        b"a = " + b"[" * 100_000,
        b"a = " + b"9" * 5000,
    ],
)
def test_a_file_that_is_no_toml_is_refused(path, refuses, content):
    path.write_bytes(content)
    with refuses(ConfigError, "is not TOML"):
        load_config(path)


@pytest.mark.parametrize("name", ["absent.toml", ".", "n" * 5000, "a\0b"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, refuses, name):
    with refuses(ConfigError):
        load_config(f"{tmp_path}/{name}")


def test_settings_from_elsewhere_are_checked_alike(path, refuses):
    write(path)
    config = load_config(path)
    assert check_config(config) is config
    bad = msgspec.structs.replace(config, flush_s=99.0)
    with refuses(ConfigError, "^flush_s is 99; it is seconds, 0 to 60"):
        check_config(bad)


def test_all_problems_are_found_at_once(path):
    write(path)
    config = load_config(path)
    source = msgspec.structs.replace(config.sources["yard"], stall_s=0, filter="absent", end=2.0)
    bad = msgspec.structs.replace(config, sources={"yard": source})
    assert {key[-1] for key, _ in problems(bad)} == {"stall_s", "filter", "end"}


def test_no_message_shows_what_may_be_secret(path):
    text = TEXT.replace("camera:0", "rtsp://user:geheim@cam/1?token=geheim")
    for broken in ("filter = 5", "masks = [[]]", "stall_s = 0", "unknown = 'geheim'"):
        path.write_text(text.replace("# more of the source", broken).replace(
            'filter = "yard.infi"', "" if "filter" in broken else 'filter = "yard.infi"'
        ))  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("bind", "place"),
    [
        ("127.0.0.1:8765", ("127.0.0.1", 8765)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
        ("localhost", None),
        (":80", None),
        ("localhost:", None),
        ("localhost:65536", None),
        ("localhost:-1", None),
        ("localhost:http", None),
        ("localhost:²", None),
    ],
)
def test_host_and_port_of_a_bind_address(bind, place):
    assert split_bind(bind) == place
