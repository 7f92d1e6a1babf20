"""Open a Keras model that somebody else saved, without running code that lies in it.

Keras files are data, but two kinds of layer are Python code in disguise: a Lambda is marshalled
bytecode, a class of a module outside Keras is imported by its name. What the file says of itself
is read first, as JSON, and the model is only loaded when nothing of the sort is in it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from converters.quiet import quiet_stderr
from infi_edge.errors import ConfigError

MAX_CONFIG_BYTES = 64 << 20
HARMLESS_MODULES = (
    *("keras", "keras.layers", "keras.activations", "keras.initializers", "keras.regularizers"),
    *("keras.constraints", "keras.models", "keras.src.ops", "keras.src.models", "keras.src.layers"),
    *("tf_keras.src.engine", "tf_keras.src.layers", "tf_keras.layers"),
)
"""Where a class of a layer may come from: these modules, and what lies below the `src` ones."""
HARMLESS_GROUPS = ("math.", "nn.", "linalg.", "image.", "signal.", "__operators__.")
HARMLESS_OPERATIONS = {
    *("reshape", "expand_dims", "squeeze", "concat", "stack", "unstack", "split", "transpose"),
    *("cast", "identity", "abs", "subtract", "add", "multiply", "divide", "clip_by_value"),
    *("maximum", "minimum", "slice", "strided_slice", "gather", "tile", "pad", "ones_like"),
    *("zeros_like", "shape", "compat.v1.shape", "convert_to_tensor", "broadcast_to", "where"),
    *("square", "sqrt", "exp", "sigmoid", "tanh", "norm", "one_hot", "stop_gradient", "reverse"),
    *("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "pow", "negative"),
}
"""What a Keras 2 `tf.something` layer may call: arithmetic, nothing that reads, writes or runs."""
OPERATION_LAYERS = {"TFOpLambda", "SlicingOpLambda"}
CODE_SUFFIXES = (".pkl", ".pickle", ".py", ".pyc", ".so", ".npy", ".npz", ".dill", ".joblib")
CODE_OPERATIONS = re.compile(
    r"PyFunc|File|Print|Shell|Save|Restore|Dataset|Iterator|Summary|Debug|Merge.*Checkpoint"
    r"|Plugin|Custom|Remote|Recv|Send|LoadLibrary"
)
"""Graph operations that run code, touch files or speak to others; a filter needs none."""
VARIABLES = {"RestoreV2", "SaveV2", "MergeV2Checkpoints", "ShardedFilename"}
"""What every SavedModel has for its own variables, in its saver's functions alone."""

Format = Literal["keras", "h5", "saved_model", "exported"]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file as it says of itself. generation: 2 or 3, the Keras that wrote it.

    layers: its layers' JSON objects, nested ones included. code: sentences about what is code.
    """

    path: Path
    format: Format
    generation: int
    layers: tuple[dict[str, Any], ...]
    code: tuple[str, ...]


def inspect_model_file(path: Path) -> ModelFile:
    """Read what a model file says of itself; nothing of it is run. Raises ConfigError."""
    try:
        if path.is_dir():
            return _inspect_saved_model(path)
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    # By its first bytes and its suffix, as the loaders do: an .h5 may end like a ZIP.
    if path.suffix == ".keras" and start[:4] == b"PK\x03\x04" and zipfile.is_zipfile(path):
        return _inspect_archive(path)
    if path.suffix != ".keras" and start == b"\x89HDF\r\n\x1a\n":
        return _inspect_h5(path)
    raise ConfigError(f"{path} is no Keras model; give a .keras or .h5 file, or a SavedModel")


def load_model(path: Path, allow_code: bool = False) -> Any:
    """Load a Keras 2 or Keras 3 model without compiling it.

    Code in the file is refused unless allow_code. Raises ConfigError.
    """
    found = inspect_model_file(path)
    if found.code and not allow_code:
        more = f" (and {len(found.code) - 1} more)" if len(found.code) > 1 else ""
        raise ConfigError(
            f"{path}: {found.code[0]}{more}; code in a model file is not run, since it can do "
            "anything on this machine: replace it by Keras layers, or trust the file with "
            "--allow-code"
        )
    try:
        with quiet_stderr():
            return _load(found, allow_code)
    except ConfigError:
        raise
    except Exception as error:  # a loader raises whatever its file makes it raise
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
        raise ConfigError(
            f"{path} cannot be loaded by Keras {found.generation}: {reason}; "
            "save it again with the Keras that made it"
        ) from error


def _load(found: ModelFile, allow_code: bool) -> Any:
    path = str(found.path)
    if found.format == "exported":
        import tensorflow as tf

        return tf.saved_model.load(path)
    if found.generation == 2:
        try:
            import tf_keras
        except ImportError as error:
            raise ConfigError(
                f"{path} is a Keras 2 model; install tf-keras (pip install tf-keras)"
            ) from error
        if found.format == "keras":
            return tf_keras.models.load_model(path, compile=False, safe_mode=not allow_code)
        return tf_keras.models.load_model(path, compile=False)
    import keras

    if found.format == "keras":
        return keras.saving.load_model(path, compile=False, safe_mode=not allow_code)
    return _load_h5_of_keras_3(path, allow_code)


def _load_h5_of_keras_3(path: str, allow_code: bool) -> Any:
    """Keras 3 writes its operations (`ops.abs(a - b)`) into .h5 files by bare class names that its
    own reader does not know: they are renamed and given to it."""
    import h5py
    import keras
    from keras.src import ops
    from keras.src.models.functional import Functional

    with h5py.File(path) as file:
        config = json.loads(file.attrs["model_config"])
    known: dict[str, Any] = {"Functional": Functional}
    for layer in _layers(config):
        name = layer.get("class_name")
        is_layer = "trainable" in layer.get("config", {}) or hasattr(keras.layers, str(name))
        if name == "Subtract" and "trainable" not in layer.get("config", {}):
            is_layer = False  # the one name that is both a layer and an operation
        operation = _operation_class(ops, str(name))
        if not is_layer and operation is not None:
            layer["class_name"] = f"Operation{name}"
            known[f"Operation{name}"] = operation
    if allow_code:
        keras.config.enable_unsafe_deserialization()
    model = keras.models.model_from_json(json.dumps(config), custom_objects=known)
    model.load_weights(path)
    return model


def _operation_class(ops: Any, name: str) -> Any:
    found = (getattr(module, name, None) for module in (ops.numpy, ops.nn, ops.math, ops.core))
    return next((kind for kind in found if isinstance(kind, type)), None)


def _inspect_archive(path: Path) -> ModelFile:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for name in ("config.json", "metadata.json"):
                if archive.getinfo(name).file_size > MAX_CONFIG_BYTES:
                    raise ConfigError(f"{path} is damaged: its {name} is too large")
            config = json.loads(archive.read("config.json"))
            version = str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (KeyError, ValueError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is no Keras model that can be read: {error}") from error
    except (NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    pickled = [name for name in names if name.lower().endswith(CODE_SUFFIXES)]
    code = [f"its part {name} may hold pickled objects or code" for name in pickled]
    return _model_file(path, "keras", version, config, code)


def _inspect_h5(path: Path) -> ModelFile:
    import h5py

    try:
        with h5py.File(path) as file:
            if "model_config" not in file.attrs:
                raise ConfigError(
                    f"{path} holds weights and no model; save the whole model (model.save)"
                )
            config = json.loads(file.attrs["model_config"])
            version = str(file.attrs.get("keras_version", "2"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is no Keras model that can be read: {error}") from error
    return _model_file(path, "h5", version, config, [])


def _inspect_saved_model(path: Path) -> ModelFile:
    if not (path / "saved_model.pb").is_file():
        raise ConfigError(f"{path} is a folder without saved_model.pb; give a Keras model")
    code = _graph_code(path)
    metadata = path / "keras_metadata.pb"
    if not metadata.is_file():
        return ModelFile(path, "exported", 3, (), tuple(code))
    try:
        from tf_keras.protobuf import saved_metadata_pb2

        nodes = saved_metadata_pb2.SavedMetadata.FromString(metadata.read_bytes()).nodes
        config = [json.loads(node.metadata) for node in nodes if node.metadata]
    except ImportError as error:
        raise ConfigError(
            f"{path} is a Keras 2 model; install tf-keras (pip install tf-keras)"
        ) from error
    except Exception as error:  # protobuf's DecodeError has no public name everywhere
        raise ConfigError(f"{path} is damaged: its keras_metadata.pb is wrong: {error}") from error
    return _model_file(path, "saved_model", "2", config, code)


def _graph_code(path: Path) -> list[str]:
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    except Exception as error:  # as above
        raise ConfigError(f"{path} is damaged: its saved_model.pb is wrong: {error}") from error
    found = set()
    for graph in saved.meta_graphs:
        functions = graph.graph_def.library.function
        nodes = {node.op for node in graph.graph_def.node} - VARIABLES
        for function in functions:
            saver = "save" in function.signature.name or "restore" in function.signature.name
            used = {node.op for node in function.node_def}
            nodes |= used - VARIABLES if saver else used
        found |= {op for op in nodes if CODE_OPERATIONS.search(op)}
    return [f"its graph calls {name}" for name in sorted(found)]


def _model_file(
    path: Path, format: Format, version: str, config: Any, code: list[str]
) -> ModelFile:
    generation = 2 if version.startswith(("1.", "2")) else 3
    # What the model was compiled with (a custom loss) is never loaded.
    model = config.get("config") if isinstance(config, dict) else config
    layers = tuple(_layers(model))
    found = [*code, *(s for layer in layers if (s := _code_in(layer)) is not None)]
    return ModelFile(path, format, generation, layers, tuple(dict.fromkeys(found)))


def _layers(config: Any) -> Iterator[dict[str, Any]]:
    """Yield every JSON object in a configuration that names a class, however deep."""
    pending = deque([config])
    while pending:
        item = pending.popleft()
        if isinstance(item, dict):
            if isinstance(item.get("class_name"), str):
                yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _code_in(layer: dict[str, Any]) -> str | None:
    """Say what is code about a layer's configuration, or None."""
    kind, config = layer["class_name"], layer.get("config")
    settings = config if isinstance(config, dict) else {}
    name = layer.get("name") or settings.get("name") or kind
    if kind in ("Lambda", "__lambda__") or settings.get("class_name") == "Lambda":
        return f"layer {name!r} is a Lambda, which is Python code"
    if "." in kind:
        return f"layer {name!r} is of class {kind}, which is reached through something else"
    module = layer.get("module")
    plain = module == "builtins" and kind == "function"
    if isinstance(module, str) and not (plain or _is_harmless(module)):
        return f"layer {name!r} is of class {module}.{kind}, which is no part of Keras"
    if kind == "function" and not str(config).isidentifier():
        return f"layer {name!r} names the function {str(config)[:60]}"
    function = str(settings.get("function"))
    known = function in HARMLESS_OPERATIONS or function.startswith(HARMLESS_GROUPS)
    if kind in OPERATION_LAYERS and not known:
        return f"layer {name!r} calls tf.{function}"
    return None


def _is_harmless(module: str) -> bool:
    below = tuple(f"{name}." for name in HARMLESS_MODULES if ".src." in name)
    return module in HARMLESS_MODULES or module.startswith(below)
