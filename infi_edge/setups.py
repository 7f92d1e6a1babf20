"""A source's gate, built from its settings, its bundle and its model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from infi_edge.budget import Allowance
from infi_edge.bundle import Manifest, OperatingPoint, operating_point, parse_bundle
from infi_edge.capture.address import public_address
from infi_edge.capture.mask import Mask
from infi_edge.capture.recordings import draft_source, live_modality
from infi_edge.config import SourceConfig
from infi_edge.errors import BundleError, ConfigError
from infi_edge.executors.head import Head
from infi_edge.executors.remote import RemoteModel
from infi_edge.filter import InputFilter
from infi_edge.gate import Gate, check_model, check_remote, head_for, workload_spec
from infi_edge.learning.begin import blank_filter, identity_of, make_learner, state_facts
from infi_edge.learning.keeper import Keeper
from infi_edge.learning.learner import Learner
from infi_edge.learning.sample import InputSample, sample_manifest
from infi_edge.policy import Knobs
from infi_edge.preprocess import MotionSpec, Spec
from infi_edge.served import ModelClient, ServedModel


def trained_rate_hz(manifest: Manifest) -> float | None:
    """The rate of the pictures, lines or arrays a filter was trained on: some have none of their
    own. A signal's rate is in the bundle's preprocessing."""
    if isinstance(manifest.preprocess, MotionSpec):
        return None
    rate_hz = manifest.trained_on.get("rate_hz")
    return float(rate_hz) if isinstance(rate_hz, (int, float)) and rate_hz > 0 else None


@dataclass(frozen=True, slots=True)
class LateClient:
    """What answers queued inputs, in a thread of its own: interpreters are not shared."""

    client: ModelClient
    head: Head | None


@dataclass(frozen=True, slots=True)
class Setup:
    """A source's gate, made ready by the daemon's thread and put in place by the source's own.

    local: answers while the server is away. late: answers what was queued meanwhile.
    """

    config: SourceConfig
    bundle_hash: str
    manifest: Manifest
    point: OperatingPoint
    gate: Gate
    client: ModelClient
    head: Head | None = None
    local: ModelClient | None = None
    late: LateClient | None = None

    @property
    def identity(self) -> str:
        """What a cache belongs to: source, model, and the bundle (the task is in it)."""
        served = self.client.served
        parts = [self.config.address, served.identity, served.config.place, self.bundle_hash]
        if self.head is not None:
            parts.append(self.head.identity)
        parts += [json.dumps([self.config.masks, self.config.regions])]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def question(self) -> str:
        """What the model is asked of an input: an answer to another question is none."""
        info = self.manifest.workload
        model = info.model_identity or self.client.served.config.place  # without a filter
        parts = [model, info.decoder, info.task, json.dumps(info.labels)]
        if self.head is not None:
            parts.append(self.head.identity)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def learning(self) -> object:
        """What is learned, and how: under other settings another learner goes on from its state.
        None: nothing is."""
        config = self.config
        if not config.learn:
            return None
        caps = (config.max_consecutive_filtered, config.heartbeat_s, config.cache.max_age_s)
        return self.point, config.target_accuracy, config.learning, caps

    def keeper(self, learner: Learner, folder: Path) -> Keeper:
        """Return what keeps a learner's state in a folder, of this source, model and task alone.

        Raises ConfigError if another process has the folder.
        """
        config, served = self.config, self.client.served
        facts = {
            **state_facts(self.manifest, public_address(config.address)),
            "filter": self.bundle_hash if config.filter else None,
            "model": [served.identity, served.config.place],
            "head": None if self.head is None else self.head.identity,
            "masks": msgspec.to_builtins([config.masks, config.regions]),
        }
        return Keeper(folder, identity_of(facts), facts, learner)

    def sample(self, folder: Path) -> InputSample | None:
        """Return what keeps a sample of what is inferred, for training; None: nothing does."""
        config, served = self.config, self.client.served
        if not config.learn or not config.learning.sample_bytes:
            return None
        remote = served.remote
        model = Path(served.config.path).name if remote is None else remote.endpoint.model
        workload = msgspec.structs.replace(
            self.manifest.workload, model=model, model_identity=served.identity
        )
        source = public_address(config.address)
        manifest = sample_manifest(self.manifest, workload, source, config.masks)
        return InputSample(folder, manifest, config.learning.sample_bytes)

    def equals(self, other: Setup) -> bool:
        """Whether another setup would decide just the same."""
        return (
            self.config == other.config
            and self.bundle_hash == other.bundle_hash
            and self.client.served is other.client.served
            and (self.head and self.head.identity) == (other.head and other.head.identity)
            and (self.local and self.local.served) is (other.local and other.local.served)
        )


def make_setup(
    config: SourceConfig,
    served: ServedModel,
    allowance: Allowance | None,
    local: ServedModel | None = None,
) -> Setup:
    """Load a source's bundle, or begin without one, and build its gate. local: the model for while
    the server is away. What is learned is not kept before `Setup.keeper` is in place.

    Raises BundleError, ConfigError, SourceError or ExecutorError.
    """
    trained, bundle_hash = _load(config, served)
    manifest = trained.manifest
    model, spec = served.config, workload_spec(manifest)
    if model.path and config.filter:
        check_model(manifest, model.path, model.version, model.allow_other)

    def check(remote: RemoteModel) -> None:
        if config.filter:
            check_remote(manifest, remote, model.allow_other)

    def make_head() -> Head | None:
        return head_for(manifest, config.head, allow=model.allow_other)

    head = make_head()
    whole = None if head is None else head.input
    client = served.client(spec, check, whole)
    late = None
    if served.remote is not None:
        late = LateClient(served.client(spec, check, whole), make_head())
    stand_in = None
    if local is not None:
        modality = "image" if head is not None else spec.modality
        decoder = model.offload.local_decoder or spec.decoder
        stand_in = local.client(replace(spec, decoder=decoder, modality=modality))
    point = operating_point(manifest, config.target_accuracy, config.target_recall)
    knobs = capped(point.knobs, config)
    gate = Gate(
        trained,
        client,
        knobs=knobs,
        enabled=config.enabled,
        cache_entries=config.cache.entries,
        cache_bytes=config.cache.max_bytes,
        cache_age_s=config.cache.max_age_s,
        eviction=config.cache.eviction,
        mask=Mask(config.masks, config.regions),
        scene_change=config.scene_change,
        allowance=allowance,
        head=head,
        learn=_learner(config, trained, client, point, knobs) if config.learn else False,
    )
    return Setup(config, bundle_hash, manifest, point, gate, client, head, stand_in, late)


def _load(config: SourceConfig, served: ServedModel) -> tuple[InputFilter, str]:
    """Return a source's filter, or one that has learned nothing yet; and what tells it apart."""
    if not config.filter:
        blank = _blank(config, served)
        facts = msgspec.json.encode([blank.manifest.preprocess, blank.manifest.workload])
        return blank, hashlib.sha256(facts).hexdigest()
    try:
        content = Path(config.filter).read_bytes()
    except OSError as error:
        raise BundleError(f"{config.filter} cannot be read: {error.strerror}") from error
    bundle = parse_bundle(content, config.filter)
    return InputFilter(bundle), hashlib.sha256(content).hexdigest()


def _blank(config: SourceConfig, served: ServedModel) -> InputFilter:
    try:
        modality, spec = draft(config)
    except ConfigError as error:  # it speaks of options
        raise ConfigError(str(error).replace("--preprocess", "preprocess")) from error
    return blank_filter(
        served.config.place,
        task=config.task,
        target_accuracy=config.target_accuracy,
        decoder=config.decoder or None,
        same=config.same,
        labels=config.labels,
        modality=modality,
        preprocess=spec,
    )


def draft(config: SourceConfig) -> tuple[str, Spec]:
    """Return modality and inputs of a source that has no filter to say them.

    Raises ConfigError or SourceError.
    """
    settings: dict[str, Any] = {
        key: value.split(",") if isinstance(value, str) and "," in value else value
        for key, value in config.preprocess.items()
    }
    rate_hz, live = config.rate_hz, live_modality(config.address)
    if live is not None and (config.modality or live) == "motion":
        rate_hz = rate_hz or config.imu.rate_hz
        if config.imu.channels:
            settings = {"channels": list(config.imu.channels), **settings}
        if "channels" not in settings or not (rate_hz or settings.get("rate_hz")):
            raise ConfigError("what of the sensor? Give imu.rate_hz and preprocess.channels")
    return draft_source(config.modality, config.address, settings, rate_hz)


def _learner(
    config: SourceConfig,
    trained: InputFilter,
    client: ModelClient,
    point: OperatingPoint,
    knobs: Knobs,
) -> Learner:
    if config.target_accuracy is None and point.measure != "accuracy":
        raise ConfigError("what learns holds an accuracy; add target_accuracy")
    return make_learner(
        trained,
        client.task,
        client.same,
        config.target_accuracy or point.target,
        knobs,
        config.learning,
        config.cache.max_age_s,
        at_once=config.fast,
    )


def capped(knobs: Knobs, config: SourceConfig) -> Knobs:
    """Return calibrated knobs under the configuration's own caps."""
    names = ("max_consecutive_filtered", "heartbeat_s")
    caps = {n: getattr(config, n) for n in names if getattr(config, n) is not None}
    return msgspec.structs.replace(knobs, **caps)
