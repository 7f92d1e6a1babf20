"""Queued inputs: each is answered once by a real server, or told as an error, or stays queued."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as messages

from infi_edge.config import ModelConfig, OffloadConfig
from infi_edge.errors import ConfigError
from infi_edge.executors.link import RemoteTensor
from infi_edge.executors.remote import RemoteModel
from infi_edge.executors.spool import Spool
from infi_edge.late import ATTEMPTS, Late
from infi_edge.served import Abandoned, ServedModel
from infi_edge.types import Action, Result, Sample
from infi_edge.workload import WorkloadSpec
from tests.offload.misbehaving import WELL, GrpcServer, abort

AT = "2026-03-01T12:00:00.000+00:00"
X = RemoteTensor("x", "FP32", (-1,))
MIB = 1 << 20


def until(good: Callable[[], bool], what: str, most_s: float = 30.0) -> None:
    end_s = time.monotonic() + most_s
    while not good():
        assert time.monotonic() < end_s, f"not in {most_s:g} s: {what}"
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[GrpcServer]:
    with GrpcServer() as made:
        yield made


@contextmanager
def reached(server: GrpcServer, deadline_s: float = 2.0, retries: int = 0) -> Iterator[RemoteModel]:
    config = OffloadConfig(deadline_s=deadline_s, retries=retries)
    with closing(RemoteModel(str(server.endpoint()), config)) as remote:
        yield remote


class Line:
    """A queue that is answered, and what came of it."""

    def __init__(
        self,
        remote: RemoteModel,
        path: Path | None = None,
        order: Any = "oldest",
        infer: Callable[[Any], Any] | None = None,
    ) -> None:
        self.remote = remote
        self.results: list[tuple[Result, Sample]] = []
        self.errors: list[tuple[int, str]] = []
        self.spool = Spool(path, MIB, order)
        self.late = Late("yard", self.spool, remote, infer or self.infer, self.deliver, self.fail)

    def infer(self, data: np.ndarray) -> float:
        return float(self.remote.run([(X, data)])[0][0])

    def deliver(self, result: Result, sample: Sample) -> None:
        self.results.append((result, sample))

    def fail(self, sample: Sample, message: str) -> None:
        self.errors.append((sample.index, message))

    def put(self, *indices: int) -> None:
        for index in indices:
            data = np.array([index], np.float32)
            sample = Sample(data, index / 10, index, "yard")
            assert self.late.put(sample, AT, data, "motion", "no route")

    @property
    def answered(self) -> list[int]:
        return [result.index for result, _ in self.results]

    def close(self) -> None:
        self.late.close()


@contextmanager
def line(remote: RemoteModel, *arguments: Any, **more: Any) -> Iterator[Line]:
    with closing(Line(remote, *arguments, **more)) as made:
        yield made


def failing_on(*bad: int) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """A server that fails on some inputs."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = messages.ModelInferRequest.FromString(request)
        if np.frombuffer(asked.raw_input_contents[0], np.float32)[0] in bad:
            context.abort(grpc.StatusCode.INTERNAL, "that is too much")
        return WELL["ModelInfer"](request, context)

    return answer


def asked(server: GrpcServer) -> int:
    return server.methods.count("ModelInfer")


def test_a_late_answer_says_what_it_is_and_of_when(server):
    with reached(server) as remote, line(remote) as queue:
        queue.put(7)
        until(lambda: bool(queue.results), "an answer")
        (result, sample) = queue.results[0]
    assert (result.value, result.index, result.time_s, result.at) == (7.0, 7, 0.7, AT)
    assert (result.action, result.late, result.source) == (Action.INFER, True, "yard")
    assert result.why == "answered late: no route"
    assert (sample.index, sample.time_s, sample.source) == (7, 0.7, "yard")
    assert np.array_equal(sample.data, [7.0])


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_what_waits_is_answered_once_in_its_order_when_the_server_is_back(server, order):
    server.stop()
    with reached(server) as remote, line(remote, order=order) as queue:
        queue.put(*range(20))
        until(lambda: not remote.is_up, "the link is known to be down")
        assert queue.answered == []
        server.start()
        until(lambda: not len(queue.spool), "all are answered")
        wanted = range(20) if order == "oldest" else range(19, -1, -1)
        assert queue.answered == list(wanted)
        assert queue.errors == []
        assert queue.spool.counts["done"] == 20
        assert asked(server) == 20


def test_outages_in_the_middle_repeat_and_lose_no_answer(server):
    with reached(server) as remote, line(remote) as queue:
        for begin in range(0, 60, 20):
            queue.put(*range(begin, begin + 20))
            until(lambda begin=begin: len(queue.answered) > begin + 3, "some answers")
            server.stop()
            queue.put(100 + begin)
            server.start()
        until(lambda: not len(queue.spool), "all are answered")
    assert sorted(queue.answered) == [*range(60), 100, 120, 140]
    assert queue.errors == []


def test_an_input_the_server_fails_on_is_given_up_after_its_attempts(server):
    server.answers["ModelInfer"] = failing_on(1)
    with reached(server) as remote, line(remote) as queue:
        queue.put(0, 1, 2, 3)
        until(lambda: not len(queue.spool), "nothing waits")
        assert queue.answered == [0, 2, 3]
        (error,) = queue.errors
        assert error[0] == 1
        assert "that is too much" in error[1]
        assert asked(server) == 3 + ATTEMPTS
        assert queue.spool.counts["dropped"] == 1


def test_a_server_that_fails_on_everything_for_a_while_costs_no_input(server):
    server.answers["ModelInfer"] = abort(grpc.StatusCode.INTERNAL, "no memory")
    with reached(server) as remote, line(remote) as queue:
        queue.put(*range(10))
        until(lambda: asked(server) >= 4, "failures")
        del server.answers["ModelInfer"]
        until(lambda: not len(queue.spool), "nothing waits")
    assert sorted(queue.answered) == list(range(10))
    assert queue.errors == []


def test_an_input_that_cuts_the_link_does_not_block_the_others(server):
    def hang_up(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = messages.ModelInferRequest.FromString(request)
        if np.frombuffer(asked.raw_input_contents[0], np.float32)[0] == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "socket closed")
        return WELL["ModelInfer"](request, context)

    server.answers["ModelInfer"] = hang_up
    with reached(server) as remote, line(remote) as queue:
        queue.put(*range(5))
        until(lambda: len(queue.answered) == 4, "the others are answered")
        assert queue.answered == [1, 2, 3, 4]
        del server.answers["ModelInfer"]
        until(lambda: not len(queue.spool), "nothing waits")
        assert queue.answered == [1, 2, 3, 4, 0]
    assert queue.errors == []


def test_an_input_that_cannot_be_read_back_is_told_and_the_server_is_not_asked(server):
    with reached(server) as remote, line(remote) as queue:
        queue.spool.failed = None  # there is no use in trying again
        queue.spool.put(3, 0.3, AT, "png", b"no picture", "no route")
        queue.spool.put(4, 0.4, AT, "npy", b"no array", "no route")
        until(lambda: not len(queue.spool), "nothing waits")
        assert [index for index, _ in queue.errors] == [3, 4]
        assert not any("unexpected" in message for _, message in queue.errors)
        assert asked(server) == 0


def test_a_stopped_model_costs_no_input_its_attempts(server, tmp_path):
    config = ModelConfig(executor=str(server.endpoint()))
    served = ServedModel("echo", config)
    spec = WorkloadSpec("value", "raw", modality="features")
    client = served.client(spec)
    given = threading.Semaphore(0)

    def infer(data: Any) -> Any:
        given.release()
        return client(data)

    served.close()
    served.join(10)
    with reached(server) as remote, line(remote, tmp_path / "s", infer=infer) as queue:
        queue.put(0, 1)
        for _ in range(ATTEMPTS + 2):
            assert given.acquire(timeout=30)
        assert queue.errors == []
        assert len(queue.spool) == 2
    with line_again(server, tmp_path / "s") as again:
        until(lambda: not len(again.spool), "nothing waits")
        assert again.answered == [0, 1]


@contextmanager
def line_again(server: GrpcServer, path: Path) -> Iterator[Line]:
    with reached(server) as remote, line(remote, path) as queue:
        yield queue


def test_a_server_with_another_model_costs_no_input(server):
    wrong = threading.Event()
    wrong.set()
    tries = []

    def infer(data: np.ndarray) -> float:
        tries.append(float(data[0]))
        if wrong.is_set():
            raise ConfigError("the bundle was trained for another model")
        return float(data[0])

    with reached(server) as remote, line(remote, infer=infer) as queue:
        queue.put(0, 1)
        until(lambda: len(tries) >= 4, "tries")
        wrong.clear()
        until(lambda: not len(queue.spool), "nothing waits")
        assert sorted(queue.answered) == [0, 1]
        assert queue.errors == []


def test_an_answer_is_not_given_out_when_that_cannot_be_noted(server, tmp_path):
    with reached(server) as remote:
        entered, go_on = threading.Event(), threading.Event()

        def infer(data: np.ndarray) -> float:
            entered.set()
            assert go_on.wait(30)
            return 1.0

        queue = Line(remote, tmp_path / "s", infer=infer)
        queue.put(0)
        assert entered.wait(30)
        queue.spool.close()  # as a daemon does that cannot wait for an answer any longer
        go_on.set()
        queue.close()
    assert queue.results == []
    with line_again(server, tmp_path / "s") as again:
        until(lambda: not len(again.spool), "nothing waits")
        assert again.answered == [0]
        assert again.spool.counts["uncertain"] == 0


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_of_what_takes_the_answers_ends_nothing(server, caplog):
    with reached(server) as remote, line(remote) as queue:
        deliver, fail = queue.deliver, queue.fail

        def defective(result: Result, sample: Sample) -> None:
            if result.index in (1, 2):
                raise RuntimeError("a defect")
            deliver(result, sample)

        def more_defective(sample: Sample, message: str) -> None:
            fail(sample, message)
            if sample.index == 2:
                raise RuntimeError("another defect")

        queue.late._deliver, queue.late._fail = defective, more_defective
        queue.put(*range(5))
        until(lambda: not len(queue.spool), "nothing waits")
        assert queue.answered == [0, 3, 4]
        assert [index for index, _ in queue.errors] == [1, 2]
        assert queue.spool.counts["dropped"] == 2
    assert "unexpected error in a late answer" in caplog.text


def test_what_waits_outlives_a_restart(server, tmp_path):
    server.stop()
    with reached(server) as remote, line(remote, tmp_path / "s") as queue:
        queue.put(0, 1, 2)
    server.start()
    with line_again(server, tmp_path / "s") as again:
        until(lambda: not len(again.spool), "nothing waits")
        assert again.answered == [0, 1, 2]


# The end of a recording.


def test_draining_waits_until_all_are_answered(server):
    with reached(server) as remote, line(remote) as queue:
        queue.put(*range(30))
        queue.late.drain(lambda: None, 30.0)
        assert queue.answered == list(range(30))


@pytest.mark.parametrize("how", ["absent", "never answers", "wrong model", "disk"])
def test_draining_ends_although_nothing_moves(how, server):
    if how == "absent":
        server.stop()
    hang = threading.Event()
    if how == "never answers":
        server.answers["ModelInfer"] = lambda request, context: (hang.wait(60) and b"") or b""

    def no_model(data: Any) -> Any:
        raise ConfigError("the bundle was trained for another model")

    infer = no_model if how == "wrong model" else None
    alive = []
    try:
        with reached(server, deadline_s=0.3) as remote, line(remote, infer=infer) as queue:
            if how == "disk":
                queue.spool.take = lambda: None
            queue.put(0)
            begun_s = time.monotonic()
            queue.late.drain(lambda: alive.append(1), 1.0)
            assert time.monotonic() - begun_s < 30
            assert alive
            assert len(queue.spool) == 1
            assert queue.errors == []
    finally:
        hang.set()


def test_draining_stops_when_the_source_is_closed(server):
    server.stop()

    def closed() -> None:
        raise Abandoned("the source is closed")

    with reached(server) as remote, line(remote) as queue:
        queue.put(0)
        with pytest.raises(Abandoned):
            queue.late.drain(closed, 60.0)
        threading.Timer(0.2, queue.late.close).start()
        queue.late.drain(lambda: None, 60.0)
