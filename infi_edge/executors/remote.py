"""A model on a server: reached over links of its own, with deadline, retries and a breaker."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from infi_edge.config import OffloadConfig
from infi_edge.errors import ConfigError, ExecutorError, InfiEdgeError
from infi_edge.executors.breaker import Breaker
from infi_edge.executors.credentials import Credentials
from infi_edge.executors.endpoint import Endpoint, parse_endpoint
from infi_edge.executors.link import (
    PLATFORM,
    SCALE,
    Link,
    LinkError,
    RemoteMetadata,
    RemoteTensor,
    Tensors,
)
from infi_edge.executors.traffic import Cause, Traffic
from infi_edge.status import LinkStatus

log = logging.getLogger("infi_edge")

PROBE_S = 2.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 10.0

Takes = Literal["tensor", "bytes", "features"]


class LinkDown(ExecutorError):
    """The server cannot be used now; what becomes of the input is the policy's business.

    passing: trying again may help, without anybody doing anything about it.
    """

    def __init__(self, message: str, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


class RemoteModel:
    """One served model, for any number of threads: each has a connection of its own.

    state, sentence: of the link, for the status page. traffic: bytes at the sockets.
    counts: `retries`, `faults` by kind, `opened` (the breaker).
    """

    def __init__(self, url: str, config: OffloadConfig) -> None:
        """Nothing is sent yet. Raises ConfigError for an address or setting that makes no sense,
        or if the package for the protocol is not installed."""
        self.endpoint: Endpoint = parse_endpoint(url)
        self.config = config
        self._credentials = Credentials(
            ca_file=config.ca_file,
            cert_file=config.cert_file,
            key_file=config.key_file,
            token_file=config.token_file,
            token_env=config.token_env,
        )
        self._transport = _transport(self.endpoint)
        self._transport(self.endpoint, self._credentials, Traffic(), 0).close()
        self.counts: Counter[str] = Counter()
        self.sentence = ""
        self.traffic = Traffic()
        self._breaker = Breaker()
        self._metadata: RemoteMetadata | None = None
        self._local = threading.local()
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._prober: threading.Thread | None = None

    def _make_link(self, traffic: Traffic) -> Link:
        """Raises LinkError if credentials cannot be read, as while others replace them."""
        most = self.config.max_response_bytes
        try:
            return self._transport(self.endpoint, self._credentials, traffic, most)
        except (ConfigError, OSError) as error:
            raise LinkError("denied", f"{self.endpoint}: {error}") from error

    # What it is.

    @property
    def is_up(self) -> bool:
        """Whether requests are made; False while only probes are."""
        return self._breaker.state != "open"

    @property
    def is_known(self) -> bool:
        """Whether the server has said what the model is."""
        return self._metadata is not None

    @property
    def metadata(self) -> RemoteMetadata:
        """What the server said when it was first reached. Raises LinkDown before that."""
        if self._metadata is None:
            self.connect()
        assert self._metadata is not None
        return self._metadata

    @property
    def takes(self) -> Takes:
        """What is sent: tensors, encoded bytes (a BYTES input), or int8 features with a scale."""
        inputs = self.metadata.inputs
        if any(tensor.datatype == "BYTES" for tensor in inputs):
            return "bytes"
        return "features" if any(tensor.name == SCALE for tensor in inputs) else "tensor"

    @property
    def identity(self) -> str:
        """The SHA-256 of the .tflite file where the server tells it, else its address and
        versions."""
        return self._identity(self.metadata)

    def _identity(self, metadata: RemoteMetadata) -> str:
        if metadata.platform.startswith(PLATFORM):
            return metadata.platform.removeprefix(PLATFORM)
        return f"{self.endpoint}@{','.join(metadata.versions)}"

    def forget(self) -> None:
        """Ask anew what the model is: it is not the one that is wanted, but may be replaced."""
        self._metadata = None
        self._local.asked = None

    def connect(self, most_s: float = 10.0) -> None:
        """Ask the server what the model is; it has most_s for that.

        Raises LinkDown if the server is not there, ExecutorError if it has no such model or the
        model is not what can be used here.
        """
        if not self._breaker.enter():
            raise LinkDown(self.sentence)
        with self._unless_interrupted(), self._as_one_fault():
            self._attempt(lambda: self._ask(self._link(), most_s))

    def wait(self, most_s: float) -> bool:
        """Wait until the server can be used; return whether it can."""
        with self._changed:
            return (
                self._changed.wait_for(lambda: self.is_up or self._closing.is_set(), most_s)
                and self.is_up
            )

    # Running.

    def run(self, inputs: Tensors) -> list[np.ndarray]:
        """Run once; return the outputs in the order of the metadata.

        Raises LinkDown if the server cannot be used, ExecutorError if it does not answer this.
        """
        import tenacity

        config, first = self.config, True
        until_s = time.monotonic() + config.deadline_s
        if not self._breaker.enter():
            raise LinkDown(self.sentence)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(config.retries + 1)
            | tenacity.stop_after_delay(config.deadline_s),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            retry=tenacity.retry_if_exception(self._is_worth_a_retry),
            sleep=self._sleep,
            reraise=True,
        )

        def once() -> list[np.ndarray]:
            nonlocal first
            cause: Cause = "infer" if first else "retry"
            if not first:
                self._count("retries")
            first = False
            link = self._link()
            if self._metadata is None or self._local.asked is not link:
                self._ask(link, until_s - time.monotonic())
            left_s = max(until_s - time.monotonic(), 0.001)
            outputs = link.infer(inputs, self.output_names, left_s, cause)
            _check_numbers(outputs, self.output_names, self.endpoint)
            return outputs

        with self._unless_interrupted(), self._as_one_fault():
            outputs = retrying(self._attempt, once)
        assert outputs is not None
        return outputs

    @property
    def output_names(self) -> list[str]:
        """Of its outputs, in the metadata's order."""
        return [tensor.name for tensor in self.metadata.outputs]

    def moved(self) -> tuple[int, int]:
        """Bytes (sent, received) by this thread's connections so far."""
        traffic: Traffic | None = getattr(self._local, "traffic", None)
        if traffic is None:
            return 0, 0
        return sum(traffic.sent.values()), sum(traffic.received.values())

    def status(self, name: str) -> LinkStatus:
        """What the status page and the metrics tell of it. name: the model's."""
        counts, sent, received = self.counts.copy(), *self.traffic.totals()
        return LinkStatus(
            name,
            str(self.endpoint),
            self.is_up,
            self.sentence,
            counts,
            sent,
            received,
            self.traffic.exact,
        )

    def close(self) -> None:
        """Let go of every connection; what runs fails soon."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.close()

    def _attempt(self, call: Callable[[], list[np.ndarray] | None]) -> list[np.ndarray] | None:
        """One attempt; its outcome goes into breaker and counts."""
        try:
            outputs = call()
        except LinkError as error:
            self._count(f"fault {error.fault}")
            self._let_go()
            if error.fault == "answer":  # the server is there; it is this input that failed
                self._up()
                raise ExecutorError(str(error)) from error
            if error.fault == "failed":
                raise
            self._down(str(error))
            raise LinkDown(str(error), error.fault == "link") from error
        self._up()
        return outputs

    @contextmanager
    def _unless_interrupted(self) -> Iterator[None]:
        """Whatever else comes of a request, it is no longer the breaker's trial."""
        try:
            yield
        except ExecutorError:  # the breaker knows
            raise
        except BaseException:
            self._breaker.cancelled()
            raise

    @contextmanager
    def _as_one_fault(self) -> Iterator[None]:
        """A server that fails on a request, and on it again, has failed once."""
        try:
            yield
        except LinkError as error:
            self._down(str(error))
            raise

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _sleep(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _is_worth_a_retry(self, error: BaseException) -> bool:
        if self._closing.is_set() or self._breaker.state == "open":
            return False
        return isinstance(error, LinkError) or (isinstance(error, LinkDown) and error.passing)

    def _link(self) -> Link:
        link: Link | None = getattr(self._local, "link", None)
        if link is None:
            if self._closing.is_set():
                raise LinkDown(f"{self.endpoint}: closed")
            if not hasattr(self._local, "traffic"):
                self._local.traffic = Traffic(self.traffic)
            link = self._make_link(self._local.traffic)
            self._local.link, self._local.asked = link, None
            with self._lock:
                self._links.add(link)
        return link

    def _let_go(self) -> None:
        link: Link | None = getattr(self._local, "link", None)
        if link is not None:
            self._local.link = None
            with self._lock:
                self._links.discard(link)
            link.close()

    def _ask(self, link: Link, most_s: float) -> None:
        """Ask what the model is, on every new connection: the server may be another by now."""
        metadata = link.metadata(max(min(most_s, 10.0), 0.001))
        known = self._metadata
        if known is not None and (self._identity(known), known.inputs, known.outputs) != (
            self._identity(metadata), metadata.inputs, metadata.outputs
        ):  # fmt: skip
            raise LinkError(
                "denied", f"{self.endpoint} is another model now; start again to use that one"
            )
        problem = _problem(metadata, self.config)
        if problem is not None:
            raise LinkError("answer", f"{self.endpoint} cannot be used: {problem}")
        self._metadata = metadata
        self._local.asked = link

    # Up and down.

    def _up(self) -> None:
        was_down = self._breaker.state != "closed"
        self._breaker.succeeded()
        if was_down:
            log.info("%s: answers again", self.endpoint)
        self.sentence = ""
        if was_down:
            with self._changed:
                self._changed.notify_all()

    def _down(self, sentence: str) -> None:
        self.sentence = sentence
        if not self._breaker.failed():
            return
        self.counts["opened"] += 1
        log.warning("%s; it is probed until it answers", sentence)
        with self._lock:
            if self._prober is None or not self._prober.is_alive():
                self._prober = threading.Thread(
                    target=self._probe, name=f"probe {self.endpoint.host}", daemon=True
                )
                self._prober.start()

    def _say_once(self, sentence: str) -> None:
        if sentence != self.sentence:
            log.warning("%s", sentence)

    def _probe(self) -> None:
        """Ask whether the model is ready, at growing, jittered intervals, until it is."""
        wait_s = FIRST_WAIT_S
        while not self._closing.wait(wait_s * random.uniform(0.5, 1.0)):
            link: Link | None = None
            try:
                link = self._make_link(Traffic(self.traffic))
                if link.ready(PROBE_S):
                    self._ask(link, PROBE_S)
                    break
            except InfiEdgeError as error:
                if not isinstance(error, LinkError) or error.fault != "link":
                    self._say_once(str(error))
                self.sentence = str(error)
            except Exception as error:  # a defect must not end what looks for the server
                log.exception("unexpected error while looking for %s", self.endpoint)
                self.sentence = f"unexpected: {error!r}"
            finally:
                if link is not None:
                    link.close()
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)
        with self._lock:
            self._prober = None
        self._breaker.probed()
        with self._changed:
            self._changed.notify_all()


LinkMaker = Callable[[Endpoint, Credentials, Traffic, int], Link]


def _transport(endpoint: Endpoint) -> LinkMaker:
    """Return what makes links. Raises ConfigError if the packages are not installed."""
    try:
        if endpoint.is_grpc:
            from infi_edge.executors.grpc_link import GrpcLink

            return GrpcLink
        from infi_edge.executors.http_link import HttpLink
    except ImportError as error:
        raise ConfigError(
            f"an executor needs {error.name}; install it with pip install 'infi-edge[offload]'"
        ) from error
    return HttpLink


def _problem(metadata: RemoteMetadata, config: OffloadConfig) -> str | None:
    """What makes a model unusable here, or None."""
    inputs = metadata.inputs
    if not inputs or not metadata.outputs:
        return "the server does not say what its inputs and outputs are"
    encoded = [tensor for tensor in inputs if tensor.datatype == "BYTES"]
    if encoded and len(inputs) > 1:
        return f"it takes bytes ({encoded[0].name}) and {len(inputs) - 1} more inputs"
    if config.send == "jpeg" and not encoded:
        return f'it takes no encoded pictures but {_told(inputs)}; leave send = "jpeg" out'
    if config.send == "tensor" and encoded:
        return f"it takes encoded bytes ({encoded[0].name}), not tensors"
    return None


def _told(tensors: Sequence[RemoteTensor]) -> str:
    return ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in tensors)


def _check_numbers(outputs: Sequence[np.ndarray], names: Sequence[str], endpoint: Endpoint) -> None:
    for name, output in zip(names, outputs, strict=True):
        # The least of numbers with a NaN among them is NaN, and cheaper than a mask.
        if output.dtype.kind == "f" and output.size and np.isnan(output.min()):
            raise LinkError("answer", f"{endpoint} answered {name} with a NaN")
