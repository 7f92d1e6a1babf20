"""What every modality's preprocessing is: a frozen specification with a few pure methods."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from infi_edge.errors import BundleError, ConfigError

MAX_TENSOR_BYTES = 64 << 20


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """How an input becomes the filter's tensor. One subclass a modality, in one file.

    The fields are what the manifest stores. The same methods run in training and on the device,
    and none of them has state. `problem` is asked before anything else is.
    """

    span: ClassVar[tuple[float, float]] = (0.0, 255.0)
    """What 0 and 255 of a uint8 tensor are to a network with float inputs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, without the batch."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype[Any]:
        """The tensor's type: uint8 (levels), float32 (the network's own units), int32 (ids)."""
        raise NotImplementedError

    @property
    def feature_count(self) -> int:
        """How many numbers `features` returns."""
        raise NotImplementedError

    def problem(self) -> str | None:
        """Say what is impossible about the fields, or None."""
        raise NotImplementedError

    def tensor(self, data: Any) -> np.ndarray:
        """Return the filter's input, (1, *shape). Raises ValueError on data of another kind."""
        raise NotImplementedError

    def features(self, tensor: np.ndarray) -> np.ndarray:
        """Return cheap fixed features, float32 (feature_count,), each about 0..1 or -1..1."""
        raise NotImplementedError

    def parts(self, tensor: np.ndarray) -> tuple[np.ndarray, ...]:
        """The tensor as the network's inputs take it: one, but for clips (one a frame)."""
        return (tensor,)

    def fitted(self, windows: list[Any]) -> Spec:
        """Return the specification with what must be learned from inputs (scales) filled in."""
        return self


S = TypeVar("S", bound=type[Spec])
_KINDS: dict[str, type[Spec]] = {}


def register(kind: S) -> S:
    """Make a Spec class known by its tag; a decorator. A modality of one's own does just this.

    Raises ConfigError if the tag is another's.
    """
    tag = str(kind.__struct_config__.tag)
    other = _KINDS.get(tag)
    if other is not None and other.__qualname__ != kind.__qualname__:
        raise ConfigError(f"modality {tag!r} is {other.__qualname__} already; take another tag")
    _KINDS[tag] = kind
    return kind


def spec_class(kind: str) -> type[Spec]:
    """Return the class behind a modality's name. Raises ConfigError if there is none."""
    try:
        return _KINDS[kind]
    except KeyError:
        known = ", ".join(_KINDS)
        raise ConfigError(
            f"modality {kind!r} is unknown; it is one of {known}, or one that a --plugin registers"
        ) from None


def parse_spec(raw: Any, modality: str, name: str) -> Spec:
    """Return the checked specification of a manifest. Raises BundleError.

    raw: its JSON object; `kind` says which class: the modality's own, or `features` (tensors as
    they are).
    """
    kind = raw.get("kind", modality) if isinstance(raw, dict) else modality
    try:
        own = spec_class(modality)
        spec = msgspec.convert(raw, own if kind == modality else spec_class("features"))
    except ConfigError as error:
        raise BundleError(f"{name}: {error}") from error
    except (msgspec.ValidationError, OverflowError, RecursionError, UnicodeError) as error:
        raise BundleError(f"{name} is damaged: its manifest is wrong: {error}") from error
    problem = spec.problem()
    if problem is not None:
        raise BundleError(f"{name} is damaged: its manifest has an impossible {problem}")
    return spec


def change_spec(spec: Spec, settings: dict[str, Any]) -> Spec:
    """Return a specification with fields set from texts (KEY=VALUE). Raises ConfigError."""
    fields = {**msgspec.to_builtins(spec), **settings}
    kind = type(spec)
    unknown = set(settings) - set(kind.__struct_fields__)
    if unknown:
        known = ", ".join(kind.__struct_fields__)
        raise ConfigError(f"--preprocess {min(unknown)}: unknown here; it is one of {known}")
    hints = get_type_hints(kind)
    for key, value in settings.items():
        choices = get_args(hints[key]) if get_origin(hints[key]) is Literal else ()
        if choices and value not in choices:
            raise ConfigError(f"--preprocess {key}={value}: it is one of {', '.join(choices)}")
    try:
        changed = msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--preprocess: {error}") from error
    problem = changed.problem()
    if problem is not None:
        raise ConfigError(f"--preprocess: impossible {problem}")
    return changed
