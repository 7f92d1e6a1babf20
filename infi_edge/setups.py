"""A source's gate, built from its settings, its bundle and its model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from infi_edge.budget import Allowance
from infi_edge.bundle import Manifest, OperatingPoint, operating_point, parse_bundle
from infi_edge.capture.mask import Mask
from infi_edge.config import SourceConfig
from infi_edge.errors import BundleError
from infi_edge.executors.head import Head
from infi_edge.executors.remote import RemoteModel
from infi_edge.filter import InputFilter
from infi_edge.gate import Gate, check_model, check_remote, head_for, workload_spec
from infi_edge.policy import Knobs
from infi_edge.preprocess import MotionSpec
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
        parts = [info.model_identity, info.decoder, info.task, json.dumps(info.labels)]
        if self.head is not None:
            parts.append(self.head.identity)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

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
    """Load a source's bundle and build its gate. local: the model for while the server is away.

    Raises BundleError, ConfigError or ExecutorError.
    """
    try:
        content = Path(config.filter).read_bytes()
    except OSError as error:
        raise BundleError(f"{config.filter} cannot be read: {error.strerror}") from error
    bundle = parse_bundle(content, config.filter)
    manifest = bundle.manifest
    model, spec = served.config, workload_spec(manifest)
    if model.path:
        check_model(manifest, model.path, model.version, model.allow_other)

    def check(remote: RemoteModel) -> None:
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
    gate = Gate(
        InputFilter(bundle),
        client,
        knobs=capped(point.knobs, config),
        enabled=config.enabled,
        cache_entries=config.cache.entries,
        cache_bytes=config.cache.max_bytes,
        cache_age_s=config.cache.max_age_s,
        eviction=config.cache.eviction,
        mask=Mask(config.masks, config.regions),
        scene_change=config.scene_change,
        allowance=allowance,
        head=head,
    )
    bundle_hash = hashlib.sha256(content).hexdigest()
    return Setup(config, bundle_hash, manifest, point, gate, client, head, stand_in, late)


def capped(knobs: Knobs, config: SourceConfig) -> Knobs:
    """Return calibrated knobs under the configuration's own caps."""
    names = ("max_consecutive_filtered", "heartbeat_s")
    caps = {n: getattr(config, n) for n in names if getattr(config, n) is not None}
    return msgspec.structs.replace(knobs, **caps)
