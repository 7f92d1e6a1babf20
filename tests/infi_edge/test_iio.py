"""Linux IIO: a tree of files as the kernel has it, with a FIFO as the character device."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from infi_edge.capture import iio_tree, motion_source
from infi_edge.capture import source as source_module
from infi_edge.capture.address import open_source
from infi_edge.capture.iio import BufferedSensor, PolledSensor, open_sensor
from infi_edge.capture.iio_scan import layout, parse_element
from infi_edge.capture.iio_tree import Denied, find_sensor
from infi_edge.capture.motion_source import Rows
from infi_edge.capture.source import Health, Source
from infi_edge.config import ImuConfig, SourceConfig
from infi_edge.errors import ConfigError, SourceError
from infi_edge.preprocess import MotionSpec, TextSpec
from infi_edge.types import Sample

SPEC = MotionSpec(channels=("accel_x", "accel_y", "temp"), window=10, hop=5, rate_hz=100.0)
SCAN = np.dtype(
    {
        "names": ["accel_x", "accel_y", "temp", "timestamp"],
        "formats": [">i2", ">i2", "<u4", "<i8"],
        "offsets": [0, 2, 4, 8],
        "itemsize": 16,
    }
)


@pytest.fixture(autouse=True)
def _short_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a silent source give None sooner, and open again sooner: the tests wait less."""
    monkeypatch.setattr(source_module, "TICK_S", 0.1)
    monkeypatch.setattr(motion_source, "TICK_S", 0.1)
    monkeypatch.setattr(source_module.Backoff.__init__, "__defaults__", (0.1, 30.0))


class Tree:
    """An accelerometer `mpu6050` with a thermometer, and its trigger."""

    def __init__(self, root: Path) -> None:
        self.root, self.sensor = root, root / "iio:device3"
        self.node = root / "dev" / "iio:device3"
        self.build()

    def build(self, buffered: bool = True) -> None:
        files = {
            "name": "mpu6050",
            "label": "left wrist",
            "in_accel_x_raw": "1000 ",
            "in_accel_y_raw": "-2000",
            "in_accel_scale": "0.001",
            "in_temp_raw": "300",
            "in_temp_scale": "10",
            "in_temp_offset": "-100",
            "sampling_frequency": "50",
            "sampling_frequency_available": "10 50 100 200",
            "current_timestamp_clock": "realtime",
            "buffer/enable": "0",
            "buffer/length": "2",
            "buffer/watermark": "1",
            "trigger/current_trigger": "",
            "scan_elements/in_accel_x_en": "0",
            "scan_elements/in_accel_x_index": "0",
            "scan_elements/in_accel_x_type": "be:s16/16>>0",
            "scan_elements/in_accel_y_en": "0",
            "scan_elements/in_accel_y_index": "1",
            "scan_elements/in_accel_y_type": "be:s12/16>>4",
            "scan_elements/in_accel_z_en": "1",
            "scan_elements/in_accel_z_index": "2",
            "scan_elements/in_accel_z_type": "be:s16/16>>0",
            "scan_elements/in_temp_en": "0",
            "scan_elements/in_temp_index": "3",
            "scan_elements/in_temp_type": "le:u24/32>>8",
            "scan_elements/in_timestamp_en": "0",
            "scan_elements/in_timestamp_index": "4",
            "scan_elements/in_timestamp_type": "le:s64/64>>0",
        }
        building = self.root / "building"
        for name, text in files.items():
            path = building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        if not buffered:
            shutil.rmtree(building / "buffer")
        building.rename(self.sensor)  # all at once
        (self.root / "trigger0").mkdir(exist_ok=True)
        (self.root / "trigger0/name").write_text("mpu6050-dev3\n")
        self.node.parent.mkdir(exist_ok=True)
        if not self.node.exists():
            os.mkfifo(self.node)

    def vanish(self) -> None:
        shutil.rmtree(self.sensor.rename(self.root / "gone"))

    def text(self, name: str) -> str:
        return (self.sensor / name).read_text().strip()

    @contextmanager
    def kernel(self) -> Iterator[int]:
        """The descriptor by which the kernel fills the character device."""
        descriptor = os.open(self.node, os.O_RDWR)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setenv(iio_tree.ROOT_VARIABLE, str(tmp_path))
    return Tree(tmp_path)


def config(
    address: str = "iio:mpu6050", imu: ImuConfig | None = None, **more: float
) -> SourceConfig:
    return SourceConfig(address=address, filter="f", model="m", imu=imu or ImuConfig(), **more)


def scans(count: int, first_ns: int, step_ns: int = 10_000_000) -> bytes:
    block = np.zeros(count, SCAN)
    block["accel_x"] = np.arange(count) - 5
    block["accel_y"] = (np.arange(count) - 5) * 16 + 7  # 7: bits that the shift drops
    block["temp"] = (200 + np.arange(count)) << 8
    block["timestamp"] = first_ns + step_ns * np.arange(count)
    return block.tobytes()


def rows_of(device: BufferedSensor | PolledSensor, count: int) -> tuple[list[float], np.ndarray]:
    times: list[float] = []
    values: list[np.ndarray] = []
    deadline_s = time.monotonic() + 20
    while len(times) < count and time.monotonic() < deadline_s:
        rows: Rows | None = device.read(0.2)
        if rows is not None:
            times += rows.times_s
            values += [np.asarray(row) for row in rows.values]
    return times, np.array(values)


def wait_for(what: str, is_so: object) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


def test_the_buffer_gives_si_units_at_the_kernels_times(tree: Tree) -> None:
    with tree.kernel() as kernel:
        device = open_sensor(config(), SPEC, Health("imu"))
        assert isinstance(device, BufferedSensor)
        block = scans(10, 5_000_000_000)
        os.write(kernel, block[:37])  # not on the border of a scan
        os.write(kernel, block[37:])
        times, values = rows_of(device, 10)
        device.close()
    np.testing.assert_allclose(times, 5 + np.arange(10) / 100, atol=1e-9)
    np.testing.assert_allclose(values[:, 0], (np.arange(10) - 5) * 0.001)
    np.testing.assert_allclose(values[:, 1], (np.arange(10) - 5) * 0.001)
    np.testing.assert_allclose(values[:, 2], (200 + np.arange(10) - 100) * 10 / 1000)  # Celsius


def test_the_buffer_is_set_up_and_switched_off_again(tree: Tree) -> None:
    with tree.kernel():
        device = open_sensor(config(), SPEC, Health("imu"))
        enabled = {
            n: tree.text(f"scan_elements/in_{n}_en") for n in ("accel_x", "accel_z", "timestamp")
        }
        assert enabled == {"accel_x": "1", "accel_z": "0", "timestamp": "1"}
        assert tree.text("trigger/current_trigger") == "mpu6050-dev3"
        assert tree.text("current_timestamp_clock") == "monotonic"
        assert tree.text("sampling_frequency") == "100"
        assert int(tree.text("buffer/length")) >= 100
        assert 1 < int(tree.text("buffer/watermark")) <= 10
        assert tree.text("buffer/enable") == "1"
        assert device.rate_hz == 100
        device.close()
        assert tree.text("buffer/enable") == "0"


def test_a_timer_that_triggers_the_sensor_has_the_filters_rate(tree: Tree) -> None:
    (tree.sensor / "trigger/current_trigger").write_text("tick\n")
    (tree.sensor / "sampling_frequency_available").write_text("1000\n")
    (tree.root / "trigger7").mkdir()
    (tree.root / "trigger7/name").write_text("tick\n")
    (tree.root / "trigger7/sampling_frequency").write_text("10\n")
    with tree.kernel():
        device = open_sensor(config(), SPEC, Health("imu"))
        assert tree.text("trigger/current_trigger") == "tick"
        assert tree.text("sampling_frequency") == "1000"
        assert (tree.root / "trigger7/sampling_frequency").read_text() == "100"
        assert device.rate_hz == 100
        device.close()


def test_a_slow_channel_that_is_not_read_does_not_slow_the_others(tree: Tree) -> None:
    shutil.rmtree(tree.sensor / "buffer")
    (tree.sensor / "sampling_frequency").unlink()
    (tree.sensor / "in_accel_sampling_frequency").write_text("50\n")
    (tree.sensor / "in_magn_sampling_frequency").write_text("8\n")
    assert open_sensor(config(), SPEC, Health("imu")).rate_hz == 100
    assert tree.text("in_magn_sampling_frequency") == "8"


def test_a_clock_that_cannot_be_set_is_mapped(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    write = iio_tree.SensorFolder.write

    def refuse(self: iio_tree.SensorFolder, name: str, text: str) -> None:
        if name == "current_timestamp_clock":
            raise SourceError("no")
        write(self, name, text)

    monkeypatch.setattr(iio_tree.SensorFolder, "write", refuse)
    with tree.kernel() as kernel:
        device = open_sensor(config(), SPEC, Health("imu"))
        now_s = time.monotonic()
        os.write(kernel, scans(3, time.time_ns()))
        times, _ = rows_of(device, 3)
        device.close()
    assert now_s - 0.5 < times[0] < now_s + 0.5
    np.testing.assert_allclose(np.diff(times), 0.01, atol=1e-6)


def test_a_driver_without_stamps_gets_times_by_arrival(tree: Tree) -> None:
    with tree.kernel() as kernel:
        device = open_sensor(config(), SPEC, Health("imu"))
        os.write(kernel, scans(5, 0, 0))
        times, _ = rows_of(device, 5)
        device.close()
    np.testing.assert_allclose(np.diff(times), 0.01, atol=1e-9)
    assert abs(times[-1] - time.monotonic()) < 10


@pytest.mark.parametrize("key", ["mpu6050", "left wrist", "3", "iio:device3"])
def test_a_sensor_is_found_by_name_label_and_number(tree: Tree, key: str) -> None:
    assert find_sensor(f"iio:{key}").path == tree.sensor


def test_a_sensor_that_is_not_there_is_named_with_those_that_are(tree: Tree) -> None:
    with pytest.raises(SourceError, match=r"iio:bmi160 is not there.*3 \(left wrist mpu6050\)"):
        find_sensor("iio:bmi160")
    (tree.root / "iio:device4").mkdir()
    (tree.root / "iio:device4/name").write_text("mpu6050\n")
    with pytest.raises(SourceError, match="iio:device3, iio:device4"):
        find_sensor("iio:mpu6050")


def test_a_channel_that_is_missing_is_refused(tree: Tree) -> None:
    spec = MotionSpec(channels=("accel_x", "anglvel_x"))
    with pytest.raises(
        ConfigError, match=r"no channel anglvel_x; it has accel_x, accel_y, accel_z"
    ):
        open_sensor(config(), spec, Health("imu"))


def test_channels_may_be_named_in_the_filters_order_and_scaled(tree: Tree) -> None:
    spec = MotionSpec(channels=("column_1", "column_2"), window=4, hop=4, rate_hz=100.0)
    imu = ImuConfig(channels=("accel_y", "accel_x"), scale={"accel_x": 2.0})
    shutil.rmtree(tree.sensor / "buffer")
    device = open_sensor(config(imu=imu), spec, Health("imu"))
    _, values = rows_of(device, 1)
    np.testing.assert_allclose(values[0], [-2.0, 2.0])


def test_without_a_trigger_its_files_are_read_at_the_rate(tree: Tree) -> None:
    (tree.root / "trigger0/name").write_text("other\n")
    device = open_sensor(config(), SPEC, Health("imu"))
    assert isinstance(device, PolledSensor)
    times, values = rows_of(device, 30)
    np.testing.assert_allclose(values[0], [1.0, -2.0, 2.0])
    assert (np.diff(times) > 0).all()
    assert np.median(np.diff(times)) > 0.005


def test_processed_values_are_taken_without_their_scale(tree: Tree) -> None:
    shutil.rmtree(tree.sensor / "buffer")
    (tree.sensor / "in_magn_x_input").write_text("0.5\n")  # gauss
    (tree.sensor / "in_magn_x_scale").write_text("77\n")
    device = open_sensor(config(), MotionSpec(channels=("magn_x",)), Health("imu"))
    assert rows_of(device, 1)[1][0] == pytest.approx(5e-5)  # tesla


def test_without_the_right_to_use_the_buffer_files_are_read(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(self: iio_tree.SensorFolder, name: str, text: str) -> None:
        raise self.fault(PermissionError(13, "Permission denied"), name)

    monkeypatch.setattr(iio_tree.SensorFolder, "write", deny)
    health = Health("imu")
    device = open_sensor(config(), SPEC, health)
    assert isinstance(device, PolledSensor)
    assert health.counts["permission"] == 1
    assert "group infi-edge" in health.sentence
    assert "udev rule" in health.sentence


def test_a_file_that_may_not_be_read_is_one_clear_sentence(tree: Tree) -> None:
    folder = find_sensor("iio:3")
    fault = folder.fault(PermissionError(13, "Permission denied"), "in_accel_x_raw")
    assert isinstance(fault, Denied)
    assert "in_accel_x_raw may not be used" in str(fault)
    busy = folder.fault(OSError(16, "Device or resource busy"), "buffer/enable")
    assert "in use by another program" in str(busy)


@pytest.mark.parametrize(
    ("form", "stored", "value"),
    [
        ("le:s16/16>>0", b"\xfe\xff", -2),
        ("be:u16/16>>0", b"\xff\xfe", 65534),
        ("be:s12/16>>4", b"\x80\x0f", -2048),
        ("le:u12/16>>0", b"\x01\xf0", 1),
        ("le:s24/32>>8", b"\xaa\xff\xff\xff", -1),
        ("le:s64/64>>0", b"\xff" * 8, -1),
        ("le:u8/8>>0", b"\xff", 255),
        ("le:f32/32>>0", b"\x00\x00\x80\x3f", 1.0),
    ],
)
def test_stored_numbers_are_read_as_their_type_says(form: str, stored: bytes, value: float) -> None:
    element = parse_element("x", "0", form)
    assert element is not None
    assert element.numbers(np.frombuffer(stored, element.storage))[0] == value


def test_a_scan_is_aligned_as_the_kernel_aligns_it() -> None:
    forms = ["le:s16/16>>0", "le:s32/32X4>>0", "le:u8/8>>0", "le:s64/64>>0"]
    elements = [parse_element(f"c{i}", str(i), form) for i, form in enumerate(forms)]
    scan = layout([e for e in reversed(elements) if e])
    assert [scan.fields[name][1] for name in ("c0", "c1", "c2", "c3")] == [0, 16, 32, 40]  # type: ignore[index]
    assert scan.itemsize == 48
    assert parse_element("x", "0", "le:s16/12>>0") is None
    assert parse_element("x", "0", "le:s16/16>>0; rm") is None


def test_a_sensor_whose_file_holds_no_number_is_refused(tree: Tree) -> None:
    (tree.sensor / "in_accel_scale").write_text("soon\n")
    with tree.kernel(), pytest.raises(SourceError, match="in_accel_scale holds no number: 'soon'"):
        open_sensor(config(), SPEC, Health("imu"))


class Feeder(threading.Thread):
    """A kernel that writes ten scans every 0.1 s until it is stopped."""

    def __init__(self, kernel: int) -> None:
        super().__init__(daemon=True)
        self.kernel, self.stopped, self.first_ns = kernel, threading.Event(), 1_000_000_000

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            os.write(self.kernel, scans(10, self.first_ns))
            self.first_ns += 100_000_000


@contextmanager
def fed(tree: Tree) -> Iterator[Feeder]:
    with tree.kernel() as kernel:
        feeder = Feeder(kernel)
        feeder.start()
        try:
            yield feeder
        finally:
            feeder.stopped.set()
            feeder.join()


def next_sample(samples: Iterator[Sample | None]) -> Sample:
    deadline_s = time.monotonic() + 30
    for sample in samples:
        if sample is not None:
            return sample
        assert time.monotonic() < deadline_s
    raise AssertionError("the source has ended")


def until_failing(source: Source, samples: Iterator[Sample | None]) -> None:
    wait_for("no fault", lambda: next(samples) is None and source.health.state == "failing")


@pytest.mark.parametrize("buffered", [True, False])
def test_the_tree_disappears_and_comes_back(tree: Tree, buffered: bool) -> None:
    if not buffered:
        shutil.rmtree(tree.sensor / "buffer")
    process = psutil.Process()
    threads, descriptors = threading.active_count(), process.num_fds()
    source = open_source("imu", config(), SPEC)
    samples = source.samples()
    with fed(tree) as feeder:
        first = next_sample(samples)
        assert first.data.shape == (10, 3)
        feeder.stopped.set()
        feeder.join()
        tree.vanish()
        until_failing(source, samples)
        assert "iio:mpu6050 is" in source.health.sentence
        assert source.health.counts["read"] == 1
    with fed(tree):
        tree.build(buffered)
        again = next_sample(samples)
        assert again.data.shape == (10, 3)
        assert source.health.state == "live"
        assert source.health.counts["reconnects"] == 1
        source.close()
        assert not [s for s in samples if s is not None]
    wait_for("leak", lambda: threading.active_count() <= threads)
    assert process.num_fds() <= descriptors


def test_lost_scans_are_a_gap_by_their_stamps(tree: Tree) -> None:
    source = open_source("imu", config(), SPEC)
    samples = source.samples()
    with tree.kernel() as kernel:
        wait_for("no setup", lambda: next(samples) is None and tree.text("buffer/enable") == "1")
        os.write(kernel, scans(10, 1_000_000_000))
        os.write(kernel, scans(10, 2_000_000_000))
        found = [next_sample(samples), next_sample(samples)]
        source.close()
    assert [round(s.time_s, 2) for s in found] == [1.09, 2.09]
    assert source.health.counts["gap"] == 1


def test_a_sensor_that_is_not_there_yet_is_waited_for(tree: Tree) -> None:
    tree.vanish()
    source = open_source("imu", config(), SPEC)
    samples = source.samples()
    until_failing(source, samples)
    assert source.health.counts["open"] >= 1
    with fed(tree):
        tree.build()
        next_sample(samples)
        source.close()


def test_only_a_motion_filter_fits() -> None:
    with pytest.raises(ConfigError, match="other inputs than the filter reads"):
        open_source("imu", config(), TextSpec())
