"""The service: what install writes, what it refuses, and that remove leaves nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from infi_edge import service_files as files
from infi_edge.bundle import read_bundle, write_bundle
from infi_edge.config import load_config
from infi_edge.errors import BundleError, ConfigError, InfiEdgeError
from infi_edge.service import Place, check_allowed, install, remove
from infi_edge.service_cli import service
from infi_edge.service_config import readable_problem

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

CONFIG = """
[sources.yard]
address = "camera:0"
filter = "filters/yard.infi"
model = "tiny"
[models.tiny]
path = "model.tflite"
"""
LEARNS = 'learn = true\ntask = "value"\ndecoder = "raw"\ntarget_accuracy = 0.9'


@pytest.fixture
def folder(tmp_path, manifest, members) -> Path:
    """A user's folder: yard.toml, its bundle and its model."""
    folder = tmp_path / "user"
    (folder / "filters").mkdir(parents=True)
    write_bundle(folder / "filters/yard.infi", manifest, members)
    (folder / "model.tflite").write_bytes(b"a model")
    (folder / "yard.toml").write_text(CONFIG)
    return folder


@pytest.fixture
def place(tmp_path) -> Place:
    """An empty image, and a virtual environment in it."""
    command = tmp_path / "image/opt/infi-edge/bin/infi-edge"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    return Place(tmp_path / "image", tmp_path / "image/opt/infi-edge")


def do(steps) -> str:
    for step in steps:
        step.do()
    return "\n".join(step.text for step in steps)


def tree(root: Path) -> dict[str, bytes | str]:
    """Every file under a folder with its content, every link with its target."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def image_of(place: Place) -> dict[str, bytes | str]:
    assert place.prefix is not None
    found = tree(place.prefix)
    del found["opt/infi-edge/bin/infi-edge"]
    return found


def unit_of(place: Place) -> str:
    return place.real(files.UNIT).read_text()


def setting(unit: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


# Installing.


def test_install_writes_the_unit_the_configuration_and_all_it_names(folder, place):
    do(install(folder / "yard.toml", place))
    assert sorted(image_of(place)) == [
        "etc/infi-edge/.service.json",
        "etc/infi-edge/filters/yard.infi",
        "etc/infi-edge/model.tflite",
        "etc/infi-edge/state",
        "etc/infi-edge/yard.toml",
        "etc/systemd/system/infi-edge.service",
        "etc/systemd/system/multi-user.target.wants/infi-edge.service",
        "etc/sysusers.d/infi-edge.conf",
        "etc/tmpfiles.d/infi-edge.conf",
        "etc/udev/rules.d/55-infi-edge.rules",
    ]
    installed = place.real("/etc/infi-edge")
    assert (installed / "model.tflite").read_bytes() == b"a model"
    assert os.readlink(installed / "state") == "/var/lib/infi-edge"
    config = load_config(installed / "yard.toml")
    assert config.sources["yard"].filter == str(installed / "filters/yard.infi")
    start = "/opt/infi-edge/bin/infi-edge run /etc/infi-edge/yard.toml"
    assert setting(unit_of(place), "ExecStart") == [start]


def test_only_root_gets_at_the_configuration_until_the_service_has_a_user(folder, place):
    do(install(folder / "yard.toml", place))
    assert stat.S_IMODE(place.real(files.CONFIG_DIR).stat().st_mode) == 0o750
    assert f"d {files.CONFIG_DIR} 0750 root infi-edge" in place.real(files.TMPFILES).read_text()


def test_install_again_changes_nothing(folder, place):
    do(install(folder / "yard.toml", place))
    before = image_of(place)
    do(install(folder / "yard.toml", place))
    assert image_of(place) == before


def test_install_again_renews_what_the_user_has_changed_in_his_own_folder(folder, place):
    do(install(folder / "yard.toml", place))
    (folder / "yard.toml").write_text(CONFIG + "threads = 2\n")
    (folder / "model.tflite").write_bytes(b"a better model")
    do(install(folder / "yard.toml", place))
    installed = place.real("/etc/infi-edge")
    assert load_config(installed / "yard.toml").models["tiny"].threads == 2
    assert (installed / "model.tflite").read_bytes() == b"a better model"


def test_the_installed_configuration_can_be_edited_and_installed_itself(folder, place, refuses):
    do(install(folder / "yard.toml", place))
    installed = place.real("/etc/infi-edge/yard.toml")
    installed.write_text(CONFIG + "threads = 2\n")
    with refuses(InfiEdgeError, "was changed since it was installed"):
        install(folder / "yard.toml", place)
    do(install(installed, place))
    assert load_config(installed).models["tiny"].threads == 2


@pytest.mark.parametrize("path", [files.UNIT, files.UDEV_RULES, files.SYSUSERS, files.TMPFILES])
def test_a_file_of_somebody_else_is_not_overwritten(folder, place, refuses, path):
    place.real(path).parent.mkdir(parents=True)
    place.real(path).write_text("[Unit]\n")
    before = image_of(place)
    with refuses(InfiEdgeError, f"{path} is not from `infi-edge service install`"):
        install(folder / "yard.toml", place)
    assert image_of(place) == before


def test_a_configuration_of_somebody_else_is_not_overwritten(folder, place, refuses):
    place.real("/etc/infi-edge").mkdir(parents=True)
    place.real("/etc/infi-edge/yard.toml").write_text("mine = true\n")
    with refuses(InfiEdgeError, "yard.toml is not from"):
        install(folder / "yard.toml", place)


def test_a_record_that_is_damaged_is_said_to_be(folder, place, refuses):
    do(install(folder / "yard.toml", place))
    place.real("/etc/infi-edge/.service.json").write_text("{")
    with refuses(InfiEdgeError, "is damaged"):
        install(folder / "yard.toml", place)


def test_a_module_beside_the_configuration_goes_with_it(folder, place):
    (folder / "own_model.py").write_text("def infer(frame):\n    return 0\n")
    (folder / "own_plugin.py").write_text("")
    plugins = 'plugins = ["own_plugin.py", "json"]\n'
    config = plugins + CONFIG.replace("model.tflite", "own_model:infer")
    (folder / "yard.toml").write_text(config)
    do(install(folder / "yard.toml", place))
    assert place.real("/etc/infi-edge/own_model.py").is_file()
    assert place.real("/etc/infi-edge/own_plugin.py").is_file()
    assert setting(unit_of(place), "WorkingDirectory") == ["/etc/infi-edge"]


def test_secrets_are_installed_and_never_shown(folder, place):
    (folder / "secret").write_text("hunter2")
    sink = '[sinks.home]\nkind = "mqtt"\npassword_file = "secret"\n'
    address = 'address = "rtsp://me:hunter2@camera/1"'
    (folder / "yard.toml").write_text(CONFIG.replace('address = "camera:0"', address) + sink)
    text = do(install(folder / "yard.toml", place))
    assert place.real("/etc/infi-edge/secret").read_text() == "hunter2"
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("model.tflite", "../user/model.tflite"), "outside the configuration's folder"),
        (("model.tflite", "nowhere_at_all:infer"), "neither a file nowhere_at_all.py beside"),
        (("camera:0", "filters"), "a recording; give its whole path"),
        (("[sources", "state = '/srv/infi'\n[sources"), "state is /srv/infi, where a service may"),
        (("[sources", "state = '../state'\n[sources"), "as a service it is one word"),
    ],
)
def test_what_a_service_could_not_use_is_refused(folder, place, refuses, change, words):
    (folder / "yard.toml").write_text(CONFIG.replace(*change))
    with refuses(ConfigError, words):
        install(folder / "yard.toml", place)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("-", True),
        ("state/results.jsonl", True),
        ("/var/lib/infi-edge/results.jsonl", True),
        ("results.jsonl", False),
        ("/var/log/yard.jsonl", False),
        ("state/../results.jsonl", False),
    ],
)
def test_results_go_where_a_service_may_write(folder, place, refuses, path, allowed):
    sink = f'[sinks.results]\nkind = "jsonl"\npath = "{path}"\n'
    (folder / "yard.toml").write_text(CONFIG + sink)
    if allowed:
        assert install(folder / "yard.toml", place)
        return
    with refuses(ConfigError, "sinks.results.path .*where a service may not write"):
        install(folder / "yard.toml", place)


def test_a_source_that_learns_from_nothing_has_no_bundle_to_install(folder, place, run):
    text = CONFIG.replace('filter = "filters/yard.infi"', LEARNS)
    (folder / "yard.toml").write_text(text)
    shown = run("install", str(folder / "yard.toml"), "--dry-run").output
    assert "model.tflite" in shown
    assert "infi\n" not in shown
    run("install", str(folder / "yard.toml"))
    assert image_of(place)["etc/infi-edge/model.tflite"] == b"a model"


def test_a_model_on_a_server_has_no_file_but_its_secrets(folder, place):
    text = CONFIG.replace('path = "model.tflite"', 'executor = "grpc://edge:8001/person"')
    text += '[models.tiny.offload]\ntoken_file = "token"\n'
    (folder / "yard.toml").write_text(text)
    (folder / "token").write_text("it-is-secret")
    do(install(folder / "yard.toml", place))
    installed = image_of(place)
    assert installed["etc/infi-edge/token"] == b"it-is-secret"
    assert "etc/infi-edge/model.tflite" not in installed


def test_the_head_of_a_partitioned_model_goes_with_it(folder, place):
    text = CONFIG.replace('model = "tiny"', 'model = "tiny"\nhead = "head.tflite"')
    (folder / "yard.toml").write_text(text)
    (folder / "head.tflite").write_bytes(b"a head")
    do(install(folder / "yard.toml", place))
    assert image_of(place)["etc/infi-edge/head.tflite"] == b"a head"


def test_a_path_that_would_not_be_copied_is_refused(folder, place, refuses):
    config = CONFIG.replace("model.tflite", str(folder / "model.tflite"))
    (folder / "yard.toml").write_text(config)
    with refuses(ConfigError, "name it without the folder"):
        install(folder / "yard.toml", place)


def test_a_wrong_configuration_is_refused_before_anything_is_written(folder, place, refuses):
    (folder / "yard.toml").write_text(CONFIG + "colour = 1\n")
    with refuses(ConfigError, "colour"):
        install(folder / "yard.toml", place)
    assert image_of(place) == {}


@pytest.mark.parametrize("hidden", ["/home/pi/x", "/root/x", "/tmp/x", "/var/tmp/x"])
def test_what_the_sandbox_hides_cannot_be_read(hidden):
    assert "which a service does not see" in readable_problem(Path(hidden))


def test_rights_decide_what_the_service_can_read(tmp_path, monkeypatch):
    monkeypatch.setattr("infi_edge.service_config.HIDDEN", ())
    for parent in [tmp_path, *tmp_path.parents]:
        if not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    file = tmp_path / "in/file"
    file.parent.mkdir()
    assert "no such file" in readable_problem(file)
    file.write_text("")
    file.chmod(0o644)
    file.parent.chmod(0o755)
    assert readable_problem(file) == ""
    file.chmod(0o600)
    assert f"see the rights of {file}" in readable_problem(file)
    file.chmod(0o644)
    file.parent.chmod(0o700)
    assert f"see the rights of {file.parent}" in readable_problem(file)
    file.parent.chmod(0o755)


# The unit.


def test_the_files_in_deploy_are_those_that_install_writes():
    unit = files.Unit(
        "/opt/infi-edge/bin/infi-edge", "/etc/infi-edge/yard.toml", ("video", "audio", "dialout")
    )
    assert (DEPLOY / "infi-edge.service").read_text() == files.unit_text(unit)
    assert (DEPLOY / "55-infi-edge.rules").read_text() == files.UDEV_TEXT
    assert (DEPLOY / "infi-edge.sysusers").read_text() == files.SYSUSERS_TEXT
    assert (DEPLOY / "infi-edge.tmpfiles").read_text() == files.TMPFILES_TEXT


def test_only_groups_that_the_machine_has_are_in_the_unit(folder, place):
    place.real("/etc").mkdir()
    place.real("/etc/group").write_text("root:x:0:\nvideo:x:44:\ni2c:x:998:\npi:x:1000:\n")
    do(install(folder / "yard.toml", place))
    assert setting(unit_of(place), "SupplementaryGroups") == ["video i2c"]


def test_a_jetson_gets_its_camera_daemon_and_devices(folder, place):
    place.real("/etc").mkdir()
    place.real("/etc/nv_tegra_release").write_text("# R36 (release)\n")
    do(install(folder / "yard.toml", place))
    assert setting(unit_of(place), "PrivateTmp") == ["no"]
    assert "char-nv* rw" in setting(unit_of(place), "DeviceAllow")


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here (Debian package systemd)")
    return found


@pytest.fixture(params=[False, True], ids=["debian", "jetson"])
def unit_file(request, tmp_path) -> Path:
    unit = files.Unit("/bin/true", "/etc/infi-edge/yard.toml", ("video",), request.param)
    path = tmp_path / "infi-edge.service"
    path.write_text(files.unit_text(unit))
    return path


def test_systemd_finds_no_fault_in_the_unit(unit_file):
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", str(unit_file)],
        capture_output=True,
        text=True,
        check=False,
    )
    about_it = [line for line in done.stderr.splitlines() if str(unit_file) in line]
    # Two keys are of systemd 254 and later, as the unit says.
    faults = [line for line in about_it if "'RestartSteps'" not in line]
    faults = [line for line in faults if "'RestartMaxDelaySec'" not in line]
    assert faults == []
    assert done.returncode == 0, done.stderr


def test_systemd_counts_little_exposure(unit_file):
    done = subprocess.run(
        [
            *(tool("systemd-analyze"), "security", "--offline=yes", "--no-pager"),
            *("--threshold=25", str(unit_file)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "--offline" in done.stderr:
        pytest.skip("this systemd-analyze has no --offline")
    assert done.returncode == 0, done.stdout[-300:]


def test_systemd_makes_the_user_and_the_folder(folder, place):
    """systemd-sysusers and systemd-tmpfiles on the image, as they run when it starts."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a user")
    do(install(folder / "yard.toml", place))
    for program, conf in (
        (("systemd-sysusers",), files.SYSUSERS),
        (("systemd-tmpfiles", "--create"), files.TMPFILES),
    ):
        command = [tool(program[0]), *program[1:], f"--root={place.prefix}", str(place.real(conf))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    [user] = [u for u in place.real("/etc/passwd").read_text().splitlines() if "infi-edge" in u]
    gid = int(user.split(":")[3])
    assert user.endswith("nologin")
    status = place.real("/etc/infi-edge").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, gid, 0o750)


def test_the_udev_rule_hands_over_a_sensors_buffer_and_nothing_else(tmp_path):
    device = tmp_path / "sys/devices/i2c-1/iio:device0"
    ours = ["buffer0/enable", "buffer/length", "scan_elements/in_accel_x_en"]
    ours += ["trigger/current_trigger", "in_accel_sampling_frequency", "current_timestamp_clock"]
    others = ["name", "power/control", "uevent", "in_accel_x_raw"]
    for name in ours + others:
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_text("")
        (device / name).chmod(0o444 if name in ("name", "in_accel_x_raw") else 0o644)
    [line] = [line for line in files.UDEV_TEXT.splitlines() if "RUN+=" in line]
    command = line.partition('RUN+="')[2].rstrip('"').replace("/sys%p", str(device))
    command = command.replace(f"chgrp {files.USER}", f"chgrp {os.getgid()}")
    subprocess.run(shlex.split(command), check=True)  # udev runs it without a shell too
    writable = [n for n in ours + others if (device / n).stat().st_mode & stat.S_IWGRP]
    assert writable == ours


@pytest.mark.parametrize("name", ["yard", "raspberry-pi", "jetson", "learning"])
def test_the_example_configurations_are_valid_and_can_be_installed(
    tmp_path, place, manifest, members, name
):
    shutil.copy(DEPLOY / f"{name}.toml", tmp_path)
    for bundle in ("yard.infi", "door.infi", "gate.infi"):
        write_bundle(tmp_path / bundle, manifest, members)
    for other in ("model.tflite", "person.tflite", "sounds.tflite", "mqtt-password", "api-token"):
        (tmp_path / other).write_text("x")
    assert load_config(tmp_path / f"{name}.toml").sources
    do(install(tmp_path / f"{name}.toml", place))
    assert load_config(place.real(f"/etc/infi-edge/{name}.toml")).models


# Removing.


def test_remove_undoes_install(folder, place):
    do(install(folder / "yard.toml", place))
    do(remove(place))
    assert image_of(place) == {}
    assert not place.real("/etc/infi-edge").exists()


def test_remove_keeps_the_state_and_purge_does_not(folder, place):
    do(install(folder / "yard.toml", place))
    state = place.real("/var/lib/infi-edge/results.jsonl")
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    do(remove(place))
    assert state.exists()
    do(remove(place, purge=True))
    assert not state.parent.exists()


def test_remove_keeps_what_it_did_not_make_or_what_was_changed(folder, place):
    do(install(folder / "yard.toml", place))
    installed = place.real("/etc/infi-edge")
    (installed / "yard.toml").write_text("# my work\n")
    (installed / "mine.txt").write_text("mine")
    text = do(remove(place))
    assert "keep" in text
    assert sorted(tree(installed)) == [".service.json", "mine.txt", "yard.toml"]
    do(remove(place, purge=True))
    assert sorted(tree(installed)) == ["mine.txt"]


def test_remove_with_purge_takes_what_was_changed_too(folder, place):
    do(install(folder / "yard.toml", place))
    place.real("/etc/infi-edge/yard.toml").write_text("# my work\n")
    do(remove(place, purge=True))
    assert image_of(place) == {}


def test_remove_leaves_a_unit_of_somebody_else(folder, place):
    do(install(folder / "yard.toml", place))
    place.real(files.UNIT).write_text("[Unit]\nDescription=mine\n")
    do(remove(place))
    assert list(image_of(place)) == [files.UNIT.lstrip("/")]


def test_there_is_nothing_to_remove_twice(folder, place, refuses):
    do(install(folder / "yard.toml", place))
    do(remove(place))
    with refuses(InfiEdgeError, "no service is installed"):
        remove(place)


# The commands.


@pytest.fixture
def run(place, monkeypatch):
    """`infi-edge service ... --prefix` on the image, from its virtual environment."""
    monkeypatch.setattr("sys.prefix", str(place.environment))

    def call(*arguments: str) -> Result:
        command = [*arguments, "--prefix", str(place.prefix)]
        return CliRunner().invoke(service, command, catch_exceptions=False)

    return call


def test_a_dry_run_shows_what_would_be_written_and_changes_nothing(folder, place, run):
    shown = run("install", str(folder / "yard.toml"), "--dry-run").output
    assert image_of(place) == {}
    run("install", str(folder / "yard.toml"))
    for line in unit_of(place).splitlines():
        assert f"    {line}\n" in shown
    for path in image_of(place):
        assert str(place.real(path)) in shown
    before = image_of(place)
    assert "delete" in run("remove", "--dry-run").output
    assert image_of(place) == before


def test_a_dry_run_on_this_machine_shows_what_would_be_run(folder, place, monkeypatch):
    monkeypatch.setattr("infi_edge.service_config.HIDDEN", ())
    monkeypatch.setattr("infi_edge.service.readable_problem", lambda path: "")
    here = Place(None, place.environment)
    commands = [s.text for s in install(folder / "yard.toml", here) if s.text.startswith("run ")]
    assert commands == [
        "run systemd-sysusers /etc/sysusers.d/infi-edge.conf",
        "run systemd-tmpfiles --create /etc/tmpfiles.d/infi-edge.conf",
        "run udevadm control --reload",
        "run udevadm trigger --subsystem-match=iio --subsystem-match=i2c-dev",
        "run systemctl daemon-reload",
        "run systemctl enable infi-edge.service",
        "run systemctl restart infi-edge.service",
    ]


def test_an_environment_that_the_service_cannot_see_is_refused(
    folder, tmp_path, monkeypatch, refuses
):
    command = tmp_path / "venv/bin/infi-edge"
    command.parent.mkdir(parents=True)
    command.write_text("")
    monkeypatch.setattr("infi_edge.service_config.HIDDEN", (str(tmp_path),))
    with refuses(InfiEdgeError, f"venv is under {tmp_path}.*/opt/infi-edge"):
        install(folder / "yard.toml", Place(None, command.parents[1]))
    with refuses(InfiEdgeError, "does not exist"):
        install(folder / "yard.toml", Place(None, tmp_path))


def test_who_is_not_root_is_told_to_use_sudo(monkeypatch, refuses):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with refuses(ConfigError, "root.*sudo"):
        check_allowed(Place())
    check_allowed(Place(Path("/image")))


def test_a_machine_without_systemd_is_told_apart(monkeypatch, refuses):
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with refuses(ConfigError, "systemd does not run here"):
        check_allowed(Place())


def test_a_command_that_fails_is_one_sentence(refuses):
    from infi_edge.service_steps import run_step

    with refuses(InfiEdgeError, "`ls /absent` failed: .*No such file"):
        run_step("ls", "/absent").do()
    with refuses(InfiEdgeError, "absent-command is not here"):
        run_step("absent-command").do()
    run_step("absent-command", needed=False).do()
    run_step("ls", "/absent", needed=False).do()


# Upgrade and rollback.


def other_bundle(path: Path, manifest, members, **workload: object) -> Path:
    """Write a bundle that differs: in what it was trained on, and in parts of its workload."""
    info = msgspec.structs.replace(manifest.workload, **workload)
    changed = msgspec.structs.replace(manifest, trained_on={"inputs": 900}, workload=info)
    write_bundle(path, changed, members)
    return path


@pytest.fixture
def installed(folder, place) -> Path:
    """The installed bundle."""
    do(install(folder / "yard.toml", place))
    return place.real("/etc/infi-edge/filters/yard.infi")


def test_upgrade_replaces_the_bundle_and_rollback_brings_it_back(
    installed, run, tmp_path, manifest, members
):
    new = other_bundle(tmp_path / "new.infi", manifest, members)
    before = installed.read_bytes()
    assert "upgraded" in run("upgrade", str(new)).output
    assert installed.read_bytes() == new.read_bytes()
    assert installed.with_name("yard.infi.previous").read_bytes() == before
    assert "rolled back" in run("rollback").output
    assert installed.read_bytes() == before
    run("rollback")
    assert installed.read_bytes() == new.read_bytes()
    assert read_bundle(installed).manifest.trained_on == {"inputs": 900}


def test_a_dry_run_of_upgrade_and_rollback_changes_nothing(
    installed, run, place, tmp_path, manifest, members
):
    new = other_bundle(tmp_path / "new.infi", manifest, members)
    before = image_of(place)
    assert str(installed) in run("upgrade", str(new), "--dry-run").output
    assert image_of(place) == before


def test_remove_after_an_upgrade_leaves_nothing(installed, run, place, tmp_path, manifest, members):
    run("upgrade", str(other_bundle(tmp_path / "new.infi", manifest, members)))
    run("remove")
    assert image_of(place) == {}


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ({"model_identity": "1" * 64}, "another model.*111111111111, not 000000000000"),
        ({"task": "confidence:0.9"}, "another task.*confidence:0.9, not label"),
        ({"same": "within:1"}, "another same rule"),
        ({"labels": ["bright", "dark"]}, "another labels"),
    ],
)
def test_a_bundle_of_another_workload_is_no_upgrade(
    installed, run, place, tmp_path, manifest, members, refuses, workload, words
):
    new = other_bundle(tmp_path / "new.infi", manifest, members, **workload)
    before = image_of(place)
    with refuses(ConfigError, words):
        run("upgrade", str(new))
    assert image_of(place) == before


def test_a_damaged_bundle_is_no_upgrade(installed, run, tmp_path, refuses):
    before = installed.read_bytes()
    (tmp_path / "new.infi").write_bytes(before[:-100])
    with refuses(BundleError):
        run("upgrade", str(tmp_path / "new.infi"))
    assert installed.read_bytes() == before


def test_an_upgrade_must_have_the_target_that_is_configured(
    folder, place, run, tmp_path, manifest, members, refuses
):
    config = CONFIG.replace("[models", "target_accuracy = 0.95\n[models")
    (folder / "yard.toml").write_text(config)
    run("install", str(folder / "yard.toml"))
    table = msgspec.structs.replace(
        manifest.calibration, points=manifest.calibration.points[:1], chosen=0
    )
    weaker = msgspec.structs.replace(manifest, calibration=table)
    write_bundle(tmp_path / "new.infi", weaker, members)
    with refuses(ConfigError, "sources.yard: the bundle promises no accuracy of 0.95"):
        run("upgrade", str(tmp_path / "new.infi"))


def test_the_same_bundle_is_no_upgrade(folder, installed, run, refuses):
    with refuses(ConfigError, "installed already"):
        run("upgrade", str(folder / "filters/yard.infi"))


def test_there_is_no_rollback_without_an_upgrade(installed, run, refuses):
    with refuses(ConfigError, "no bundle before"):
        run("rollback")


def test_an_upgrade_needs_an_installed_service(run, folder, refuses):
    with refuses(InfiEdgeError, "no service is installed"):
        run("upgrade", str(folder / "filters/yard.infi"))


def test_of_several_sources_the_one_meant_is_named(
    folder, place, run, tmp_path, manifest, members, refuses
):
    shutil.copy(folder / "filters/yard.infi", folder / "gate.infi")
    second, _, _ = CONFIG.partition("[models")
    second = second.replace("yard]", "gate]").replace("filters/yard", "gate")
    (folder / "yard.toml").write_text(second + CONFIG)
    run("install", str(folder / "yard.toml"))
    new = other_bundle(tmp_path / "new.infi", manifest, members)
    with refuses(ConfigError, "--source: gate, yard"):
        run("upgrade", str(new))
    with refuses(ConfigError, "no source 'door'"):
        run("upgrade", str(new), "--source", "door")
    run("upgrade", str(new), "--source", "gate")
    assert place.real("/etc/infi-edge/gate.infi").read_bytes() == new.read_bytes()
    kept = (folder / "filters/yard.infi").read_bytes()
    assert place.real("/etc/infi-edge/filters/yard.infi").read_bytes() == kept


def test_there_is_no_upgrade_for_a_source_that_learns_from_nothing(folder, place, run, refuses):
    bundle = str(folder / "filters/yard.infi")
    (folder / "yard.toml").write_text(CONFIG.replace('filter = "filters/yard.infi"', LEARNS))
    run("install", str(folder / "yard.toml"))
    for arguments in (["upgrade", bundle], ["rollback"], ["rollback", "--source", "yard"]):
        with refuses(ConfigError, "source yard has no filter to upgrade; it learns its own"):
            run(*arguments)


def test_the_bundle_is_that_of_the_only_source_that_has_one(
    folder, place, run, tmp_path, manifest, members, refuses
):
    learns, _, _ = CONFIG.replace('filter = "filters/yard.infi"', LEARNS).partition("[models")
    (folder / "yard.toml").write_text(learns.replace("yard]", "gate]") + CONFIG)
    run("install", str(folder / "yard.toml"))
    new = other_bundle(tmp_path / "new.infi", manifest, members)
    with refuses(ConfigError, "source gate has no filter to upgrade"):
        run("upgrade", str(new), "--source", "gate")
    run("upgrade", str(new))
    assert place.real("/etc/infi-edge/filters/yard.infi").read_bytes() == new.read_bytes()


def test_the_group_has_its_four_commands():
    assert isinstance(service, click.Group)
    assert sorted(service.commands) == ["install", "remove", "rollback", "upgrade"]
