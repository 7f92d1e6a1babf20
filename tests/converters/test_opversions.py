"""Operator versions are read out of the file; too new ones are avoided or refused."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf

from converters.opversions import KNOWN, operator_versions, too_new
from converters.quantize import to_tflite
from infi_edge.errors import ConfigError


def dense() -> keras.Model:
    return keras.Sequential([keras.Input((64,)), keras.layers.Dense(64), keras.layers.Dense(2)])


def samples(count: int = 8) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return [[rng.normal(0, 1, (1, 64)).astype(np.float32)] for _ in range(count)]


def test_the_dynamic_range_trap_is_seen() -> None:
    model = dense()
    model(np.zeros((1, 64), np.float32))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
    assert operator_versions(content)["FULLY_CONNECTED"] >= 12
    assert too_new(content) == [
        f"FULLY_CONNECTED version {operator_versions(content)['FULLY_CONNECTED']}"
    ]


@pytest.mark.parametrize("precision", ["int8", "float16", "float32"])
def test_what_is_converted_here_is_known_everywhere(precision: str) -> None:
    content = to_tflite(dense(), precision, samples())  # type: ignore[arg-type]
    assert too_new(content) == []
    assert operator_versions(content)["FULLY_CONNECTED"] <= KNOWN["FULLY_CONNECTED"]


def test_an_operator_that_no_setting_avoids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "FULLY_CONNECTED", 0)
    with pytest.raises(ConfigError, match=r"FULLY_CONNECTED version \d+.*tflite-runtime 2\.14"):
        to_tflite(dense(), "float32", [])
