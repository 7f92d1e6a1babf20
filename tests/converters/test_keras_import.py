"""Keras filters of somebody else's: converted, taken apart, compared, or refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("tensorflow")
pytest.importorskip("tf_keras")

from converters.cli import cli
from converters.modelfile import inspect_model_file
from infi_edge.bundle import read_bundle
from infi_edge.errors import ConfigError
from tests.converters import keras_models as made

MODALITIES = {"image": "image", "video": "video", "audio": "audio", "text": "text"}
MODALITIES["vector"] = "motion"

Convert = Callable[..., Any]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same weights on every run, in both Kerases."""
    for generation in (2, 3):
        made.keras_of(generation).utils.set_random_seed(1)


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Run `infi-convert keras` in this process; return (bundle path, what it printed)."""

    def run(model: Path, *arguments: str) -> tuple[Path, str]:
        bundle = tmp_path / "out.infi"
        done = CliRunner().invoke(
            cli, ["keras", str(model), "-o", str(bundle), *arguments], catch_exceptions=False
        )
        return bundle, done.output

    return run


def scores(bundle: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What `infi-convert score` prints for these arrays."""
    stored = bundle.with_name("stored.npz")
    np.savez(stored, **arrays)  # type: ignore[arg-type]
    done = CliRunner().invoke(cli, ["score", str(bundle), str(stored)], catch_exceptions=False)
    return np.array([float(line) for line in done.stdout.split()])


def predicted(model: Any, parts: list[np.ndarray]) -> np.ndarray:
    found: np.ndarray = model.predict(parts if len(parts) > 1 else parts[0], verbose=0)[:, 0]
    return found


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in ("video", "audio") else ())
        for kind in made.SHAPES
    ],
)
@pytest.mark.parametrize("generation", [2, 3])
def test_the_reference_shapes_score_as_in_keras(
    convert: Convert, tmp_path: Path, generation: int, kind: str
) -> None:
    a, b = made.inputs_of(kind, 40, 1), made.inputs_of(kind, 40, 2)
    for mechanism in ("skip", "reuse"):
        model = (made.skip_model if mechanism == "skip" else made.reuse_model)(generation, kind)
        given = a if mechanism == "skip" else [*a, *b]
        made.fit(model, given, generation)
        expected = predicted(model, given)
        file = tmp_path / f"{mechanism}.{'h5' if mechanism == 'skip' else 'keras'}"
        model.save(file)
        bundle, said = convert(file, "--modality", MODALITIES[kind])
        assert "float16" in said
        manifest = read_bundle(bundle).manifest
        assert manifest.mechanism == mechanism
        assert manifest.workload.task == ""
        found = scores(bundle, {f"x{i}": part for i, part in enumerate(given)})
        assert np.abs(found - expected).max() < 0.03
        if expected.std() > 0.02:
            assert np.corrcoef(found, expected)[0, 1] > 0.95


@pytest.mark.parametrize("generation", [2, 3])
def test_every_format_gives_the_same_scores(
    convert: Convert, tmp_path: Path, generation: int
) -> None:
    model = made.reuse_model(generation, "vector")
    a, b = made.inputs_of("vector", 20, 1)[0], made.inputs_of("vector", 20, 2)[0]
    made.fit(model, [a, b], generation)
    files = [tmp_path / "m.keras", tmp_path / "m.h5"]
    files += [tmp_path / "saved"] if generation == 2 else []
    found = []
    for file in files:
        model.save(file)
        bundle, _ = convert(file, "--modality", "motion")
        found.append(scores(bundle, {"a": a, "b": b}))
    assert all((f == found[0]).all() for f in found)
    assert np.abs(found[0] - predicted(model, [a, b])).max() < 0.03


def test_an_exported_saved_model_is_a_skip_filter(convert: Convert, tmp_path: Path) -> None:
    model = made.skip_model(3, "vector")
    x = made.inputs_of("vector", 30, 1)
    made.fit(model, x, 3)
    model.export(tmp_path / "exported", verbose=False)
    bundle, _ = convert(tmp_path / "exported", "--modality", "motion")
    assert np.abs(scores(bundle, {"x": x[0]}) - predicted(model, x)).max() < 0.01


def _perceptron(layers: Any, x: Any) -> Any:
    return layers.Dense(1, "sigmoid")(layers.Dense(8, "relu")(x))


def _activation_apart(layers: Any, x: Any) -> Any:
    return layers.Activation("sigmoid")(layers.Dense(1)(x))


@pytest.mark.parametrize("head", [_perceptron, _activation_apart])
@pytest.mark.parametrize("generation", [2, 3])
def test_a_perceptron_on_top_scores_again_what_is_near(
    convert: Convert, tmp_path: Path, generation: int, head: Any
) -> None:
    model = made.reuse_model(generation, "vector", head)
    a, b = made.inputs_of("vector", 30, 1)[0], made.inputs_of("vector", 30, 2)[0]
    made.fit(model, [a, b], generation)
    model.save(tmp_path / "m.keras")
    bundle, _ = convert(tmp_path / "m.keras", "--modality", "motion")
    assert read_bundle(bundle).manifest.filter.classifier == "mlp"  # weights of both signs
    assert np.abs(scores(bundle, {"a": a, "b": b}) - predicted(model, [a, b])).max() < 0.03


def test_weights_of_one_sign_fold_into_the_lookup(convert: Convert, tmp_path: Path) -> None:
    model = made.reuse_model(3, "vector")
    dense = model.layers[-1]
    kernel, bias = dense.get_weights()
    for name, sign in (("differ", 1), ("same", -1)):
        dense.set_weights([sign * np.abs(kernel), bias + 0.3])
        model.save(tmp_path / f"{name}.keras")
    a, b = made.inputs_of("vector", 30, 1)[0], made.inputs_of("vector", 30, 2)[0]
    says_same = predicted(model, [a, b])
    bundle, _ = convert(tmp_path / "differ.keras", "--modality", "motion")
    assert read_bundle(bundle).manifest.filter.classifier == "l1"
    _, said = convert(tmp_path / "same.keras", "--modality", "motion")
    assert "--invert" in said
    bundle, _ = convert(tmp_path / "same.keras", "--modality", "motion", "--invert")
    assert read_bundle(bundle).manifest.filter.classifier == "l1"
    assert np.abs(scores(bundle, {"a": a, "b": b}) - (1 - says_same)).max() < 0.03


def test_calibration_data_makes_int8_or_says_why_not(convert: Convert, tmp_path: Path) -> None:
    keras = made.keras_of(3)
    x = (
        made.inputs_of("image", 200, 1)[0]
        * np.linspace(0.2, 1, 200, dtype=np.float32)[:, None, None, None]
    )
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            *(layers.Conv2D(8, 3, 2, activation="relu"), layers.Flatten()),
            layers.Dense(1, "sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    model.fit(x, (np.arange(200) > 100).astype(np.float32), epochs=20, verbose=0)
    np.savez(tmp_path / "some.npz", x=x[::2])
    model.save(tmp_path / "m.keras")
    bundle, said = convert(
        tmp_path / "m.keras",
        *("--modality", "image", "--calibration-data", str(tmp_path / "some.npz")),
    )
    assert ", int8, " in said, said
    receipt = read_bundle(bundle).manifest.parity
    assert float(receipt["agreement"]) >= 0.99
    assert float(receipt["auc_of_float_median"]) >= 0.995
    assert "CONV_2D:" in str(receipt["operators"])
    assert np.abs(scores(bundle, {"x": x[1::2]}) - predicted(model, [x[1::2]])).mean() < 0.02
    # Pictures in bytes are the same pictures.
    levels = np.rint(x[1::2] * 255).astype(np.uint8)
    assert np.abs(scores(bundle, {"x": levels}) - predicted(model, [levels / 255])).mean() < 0.02


def test_pictures_of_a_camera_are_turned_into_the_models_colours(
    convert: Convert, tmp_path: Path
) -> None:
    keras = made.keras_of(3)
    layers = keras.layers
    reds = layers.Conv2D(1, 1, use_bias=False)
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), reds, layers.Flatten(), layers.Dense(1, "sigmoid")]
    )
    reds.set_weights([np.array([4.0, 0, 0], np.float32).reshape(1, 1, 3, 1)])
    model.layers[-1].set_weights([np.full((64, 1), 1 / 64, np.float32), np.zeros(1, np.float32)])
    model.save(tmp_path / "m.keras")
    bundle, _ = convert(tmp_path / "m.keras", "--modality", "image")
    from infi_edge import load_filter

    red_of_a_camera = np.zeros((40, 60, 3), np.uint8)
    red_of_a_camera[..., 2] = 255
    score, _ = load_filter(bundle)(red_of_a_camera)
    assert score == pytest.approx(1 / (1 + np.exp(-4)), abs=0.01)


# What is refused, in one sentence.


def refused(convert: Convert, model: Path, *words: str, modality: str = "motion") -> None:
    with pytest.raises(ConfigError) as caught:
        convert(model, "--modality", modality)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("generation", [2, 3])
@pytest.mark.parametrize("file", ["m.keras", "m.h5", "saved"])
def test_a_lambda_is_not_run(convert: Convert, tmp_path: Path, generation: int, file: str) -> None:
    if generation == 3 and file == "saved":
        pytest.skip("Keras 3 saves no SavedModel with layers")
    keras = made.keras_of(generation)
    trace = tmp_path / "ran"

    def evil(x: Any) -> Any:
        import pathlib

        pathlib.Path(trace).touch()
        return x

    x = keras.layers.Input((4,))
    inner = keras.Sequential([keras.layers.Lambda(lambda v, f=evil: f(v), name="sneaky")])
    model = keras.Model(x, keras.layers.Dense(1, "sigmoid")(inner(x)))
    model.save(tmp_path / file)
    trace.unlink(missing_ok=True)
    refused(convert, tmp_path / file, "sneaky", "--allow-code")
    assert not trace.exists()


def test_code_that_is_trusted_is_run(convert: Convert, tmp_path: Path) -> None:
    keras = made.keras_of(2)
    x = keras.layers.Input((4,))
    model = keras.Model(
        x, keras.layers.Dense(1, "sigmoid")(keras.layers.Lambda(lambda v: 2 * v)(x))
    )
    model.save(tmp_path / "m.h5")
    bundle, _ = convert(tmp_path / "m.h5", "--modality", "motion", "--allow-code")
    rows = np.random.default_rng(0).normal(0, 1, (10, 4)).astype(np.float32)
    assert np.abs(scores(bundle, {"x": rows}) - predicted(model, [rows])).max() < 0.01


def rewritten(file: Path, change: Callable[[dict[str, Any]], None], **parts: bytes) -> Path:
    """A .keras file with its configuration changed and parts added."""
    other = file.with_name("changed.keras")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
        for name, content in parts.items():
            new.writestr(name, content)
    return other


def test_a_class_of_another_module_and_pickled_parts_are_refused(
    convert: Convert, tmp_path: Path
) -> None:
    model = made.skip_model(3, "vector")
    model.save(tmp_path / "m.keras")

    def to_os(config: dict[str, Any]) -> None:
        config["config"]["layers"][1] |= {"module": "os", "class_name": "system"}

    def to_builtin(config: dict[str, Any]) -> None:
        config["config"]["layers"][1] |= {"module": "builtins", "class_name": "eval"}

    refused(convert, rewritten(tmp_path / "m.keras", to_os), "os.system", "no part of Keras")
    refused(convert, rewritten(tmp_path / "m.keras", to_builtin), "builtins.eval")
    pickled = {"assets/state.pkl": pickle.dumps(print)}
    refused(convert, rewritten(tmp_path / "m.keras", lambda config: None, **pickled), "state.pkl")


def test_an_op_layer_that_touches_files_is_refused(convert: Convert, tmp_path: Path) -> None:
    import h5py

    model = made.reuse_model(2, "vector")
    model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "TFOpLambda" and layer["config"]["function"] == "math.abs":
                layer["config"]["function"] = "io.write_file"
        file.attrs["model_config"] = json.dumps(config)
    refused(convert, tmp_path / "m.h5", "tf.io.write_file", "--allow-code")


@pytest.mark.parametrize("function", ["io.write_file", "experimental.register_filesystem_plugin"])
@pytest.mark.parametrize("kind", ["TFOpLambda", "SlicingOpLambda"])
def test_an_op_layer_with_constants_of_the_file_calls_arithmetic_alone(
    convert: Convert, tmp_path: Path, function: str, kind: str
) -> None:
    import h5py

    made.skip_model(2, "vector").save(tmp_path / "m.h5")
    trace = tmp_path / "written"
    layer = {
        "class_name": kind,
        "name": "tf.op",
        "config": {"name": "tf.op", "trainable": True, "dtype": "float32", "function": function},
        "inbound_nodes": [["_CONSTANT_VALUE", -1, str(trace), {"contents": "hello"}]],
    }
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"].append(layer)
        file.attrs["model_config"] = json.dumps(config)
    refused(convert, tmp_path / "m.h5", f"tf.{function}", "--allow-code")
    assert not trace.exists()


def test_a_model_that_is_two_files_in_one_is_read_as_it_will_be_loaded(
    convert: Convert, tmp_path: Path
) -> None:
    keras = made.keras_of(2)
    x = keras.layers.Input((4,))
    hidden = keras.layers.Lambda(lambda v: 2 * v, name="hidden")(x)
    keras.Model(x, keras.layers.Dense(1, "sigmoid")(hidden)).save(tmp_path / "two.h5")
    made.skip_model(2, "vector").save(tmp_path / "clean.keras")
    with (
        zipfile.ZipFile(tmp_path / "two.h5", "a") as two,
        zipfile.ZipFile(tmp_path / "clean.keras") as clean,
    ):
        for name in clean.namelist():
            two.writestr(name, clean.read(name))
    refused(convert, tmp_path / "two.h5", "hidden", "Lambda")
    (tmp_path / "two.h5").rename(tmp_path / "two.keras")
    refused(convert, tmp_path / "two.keras", "no Keras model")


def test_a_graph_that_runs_python_is_refused(convert: Convert, tmp_path: Path) -> None:
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])
        def serve(self, x: Any) -> Any:
            y = tf.py_function(lambda v: v, [x], tf.float32)
            return tf.reshape(tf.sigmoid(tf.reduce_sum(y, axis=1)), (-1, 1))

    module = Module()
    signatures = {"serving_default": module.serve.get_concrete_function()}
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures)
    refused(convert, tmp_path / "saved", "EagerPyFunc", "--allow-code")


@pytest.mark.parametrize("generation", [2, 3])
def test_frames_of_a_clip_may_share_their_layers(
    convert: Convert, tmp_path: Path, generation: int
) -> None:
    keras = made.keras_of(generation)
    layers = keras.layers
    shared = layers.Conv2D(4, 3, 2, activation="relu")
    frames = [layers.Input((24, 24, 3)) for _ in range(4)]
    pooled = [layers.GlobalMaxPool2D()(shared(frame)) for frame in frames]
    model = keras.Model(frames, layers.Dense(1, "sigmoid")(layers.Concatenate()(pooled)))
    model.save(tmp_path / "m.keras")
    bundle, _ = convert(tmp_path / "m.keras", "--modality", "video")
    rng = np.random.default_rng(0)
    parts = [rng.random((12, 24, 24, 3)).astype(np.float32) for _ in range(4)]
    found = scores(bundle, {f"x{i}": part for i, part in enumerate(parts)})
    assert np.abs(found - predicted(model, parts)).max() < 0.02


@pytest.mark.parametrize("layer", ["LSTM", "GRU"])
@pytest.mark.parametrize("generation", [2, 3])
def test_a_recurrent_filter_converts_or_is_kept_as_float16(
    convert: Convert, tmp_path: Path, generation: int, layer: str
) -> None:
    keras = made.keras_of(generation)
    x = keras.layers.Input((20, 3))
    hidden = getattr(keras.layers, layer)(8)(x)
    model = keras.Model(x, keras.layers.Dense(1, "sigmoid")(hidden))
    model.save(tmp_path / "m.keras")
    rows = np.random.default_rng(0).normal(0, 1, (100, 20, 3)).astype(np.float32)
    np.savez(tmp_path / "some.npz", x=rows)
    bundle, _ = convert(
        tmp_path / "m.keras",
        *("--modality", "motion", "--calibration-data", str(tmp_path / "some.npz")),
    )
    assert np.abs(scores(bundle, {"x": rows}) - predicted(model, [rows])).max() < 0.05


def test_arithmetic_within_the_shared_network_is_no_obstacle(
    convert: Convert, tmp_path: Path
) -> None:
    keras = made.keras_of(3)
    layers = keras.layers
    dense = layers.Dense(8, "relu")
    a, b = layers.Input((6,)), layers.Input((6,))
    u, v = (dense(x * 2.0 - 0.5) / 3.0 for x in (a, b))
    score = layers.Dense(1, "sigmoid")
    model = keras.Model([a, b], score(keras.ops.abs(u - v)))
    score.set_weights([np.linspace(-0.02, 0.01, 8, dtype=np.float32)[:, None], np.zeros(1)])
    model.save(tmp_path / "m.keras")
    bundle, _ = convert(tmp_path / "m.keras", "--modality", "motion")
    rng = np.random.default_rng(0)
    # In units that no made-up input could guess.
    x, y = (rng.normal(0, 200, (40, 6)).astype(np.float32) for _ in "ab")
    assert np.abs(scores(bundle, {"a": x, "b": y}) - predicted(model, [x, y])).max() < 0.05


def test_pictures_on_another_scale_are_refused(convert: Convert, tmp_path: Path) -> None:
    from infi_edge.errors import SourceError

    made.skip_model(3, "image").save(tmp_path / "m.keras")
    bundle, _ = convert(tmp_path / "m.keras", "--modality", "image")
    bright = made.inputs_of("image", 3, 0)[0] * 255
    with pytest.raises(SourceError, match="0 to 1; scale them"):
        scores(bundle, {"x": bright})


def _two_sides(keras: Any, join: Any, second: Any = None) -> Any:
    layers = keras.layers
    dense = layers.Dense(4, "relu", name="shared")
    first = keras.Sequential([layers.Input((6,)), dense], name="first")
    a, b = layers.Input((6,)), layers.Input((6,))
    return keras.Model([a, b], join(layers, first(a), (second or first)(b)))


@pytest.mark.parametrize("generation", [2, 3])
def test_what_cannot_be_taken_apart_is_refused_by_the_layers_name(
    convert: Convert, tmp_path: Path, generation: int
) -> None:
    keras, absolute = made.keras_of(generation), made.absolute(generation)
    score = keras.layers.Dense(1, "sigmoid", name="score")
    other = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(4)], name="other")
    models = {
        "no absolute difference": _two_sides(
            keras, lambda layers, a, b: score(layers.Concatenate(name="joined")([a, b]))
        ),
        "first": _two_sides(
            keras,
            lambda layers, a, b: layers.Dense(1, "sigmoid")(absolute(a - b)),
            other,
        ),
        "twisted": _two_sides(
            keras,
            lambda layers, a, b: layers.Dense(1, "sigmoid")(
                layers.LayerNormalization(name="twisted")(absolute(a - b))
            ),
        ),
        "beside": _two_sides(
            keras,
            lambda layers, a, b: layers.Dense(1, "sigmoid")(
                layers.Concatenate(name="beside")([absolute(a - b), a])
            ),
        ),
        "bent": _two_sides(
            keras, lambda layers, a, b: layers.Dense(1, "tanh", name="bent")(absolute(a - b))
        ),
        "wide": _two_sides(
            keras, lambda layers, a, b: layers.Dense(3, "sigmoid", name="wide")(absolute(a - b))
        ),
    }
    for word, model in models.items():
        model.save(tmp_path / "m.keras")
        refused(convert, tmp_path / "m.keras", word)


def test_a_layer_that_tflite_does_not_know_is_named(convert: Convert, tmp_path: Path) -> None:
    import tensorflow as tf

    keras = made.keras_of(2)
    x = keras.layers.Input((8,))
    for odd, words in (
        (tf.math.bessel_i0(x), ("layer 'tf.math.bessel_i0'", "BesselI0")),
        (tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))), ("does not run",)),
    ):
        keras.Model(x, keras.layers.Dense(1, "sigmoid")(odd)).save(tmp_path / "m.h5")
        refused(convert, tmp_path / "m.h5", *words, "float16")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.keras", ("none.keras", "cannot be read")),
        ("text.keras", ("no Keras model",)),
        ("empty.keras", ("no Keras model",)),
        ("weights.h5", ("weights and no model",)),
        ("folder", ("saved_model.pb",)),
        ("half.keras", ("half.keras",)),
        ("half.h5", ("half.h5",)),
    ],
)
def test_what_is_no_model_is_refused(
    convert: Convert, tmp_path: Path, name: str, words: tuple[str, ...]
) -> None:
    import h5py

    (tmp_path / "text.keras").write_text("no model")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["w"] = np.zeros(3)
    (tmp_path / "folder").mkdir()
    model = made.skip_model(3, "vector")
    for ending in ("keras", "h5"):
        whole = tmp_path / f"whole.{ending}"
        model.save(whole)
        content = whole.read_bytes()
        (tmp_path / f"half.{ending}").write_bytes(content[: len(content) // 2])
    refused(convert, tmp_path / name, *words)


def test_inputs_that_are_not_the_modalitys_are_refused(convert: Convert, tmp_path: Path) -> None:
    made.skip_model(3, "vector").save(tmp_path / "m.keras")
    refused(convert, tmp_path / "m.keras", "(90,)", "picture", modality="image")
    refused(convert, tmp_path / "m.keras", "smell", modality="smell")
    with pytest.raises(ConfigError, match="--modality"):
        convert(tmp_path / "m.keras")
    with pytest.raises(ConfigError, match="becomes"):
        convert(tmp_path / "m.keras", "--modality", "audio", "--preprocess", "rate_hz=8000")
    keras = made.keras_of(3)
    layers = keras.layers
    pooled = [layers.GlobalAveragePooling2D(), layers.Dense(1, "sigmoid")]
    open_size = keras.Sequential([layers.Input((None, None, 3)), *pooled])
    open_size.save(tmp_path / "open.keras")
    refused(convert, tmp_path / "open.keras", "--preprocess height=", modality="image")
    bundle, _ = convert(
        tmp_path / "open.keras",
        *("--modality", "image", "--preprocess", "height=24", "--preprocess", "width=32"),
    )
    assert read_bundle(bundle).manifest.preprocess.shape == (24, 32, 3)


def test_a_score_needs_a_probability(convert: Convert, tmp_path: Path) -> None:
    keras = made.keras_of(3)
    layers = keras.layers
    for units, activation, word in ((3, "softmax", "one number"), (1, "relu", "no probability")):
        keras.Sequential([layers.Input((4,)), layers.Dense(units, activation, name="last")]).save(
            tmp_path / "m.keras"
        )
        refused(convert, tmp_path / "m.keras", "last", word)
    rows = np.random.default_rng(0).normal(0, 1, (10, 4)).astype(np.float32)
    two = keras.Sequential([layers.Input((4,)), layers.Dense(2, "softmax")])
    two.save(tmp_path / "m.keras")
    bundle, said = convert(tmp_path / "m.keras", "--modality", "motion")
    assert "second" in said
    expected = two.predict(rows, verbose=0)[:, 1]
    assert np.abs(scores(bundle, {"x": rows}) - expected).max() < 0.01


def test_inspection_runs_nothing_and_counts_generations(tmp_path: Path) -> None:
    for generation in (2, 3):
        made.skip_model(generation, "vector").save(tmp_path / "m.h5")
        found = inspect_model_file(tmp_path / "m.h5")
        assert (found.generation, found.format, found.code) == (generation, "h5", ())
        assert {"Dense", "Flatten"} <= {layer["class_name"] for layer in found.layers}
