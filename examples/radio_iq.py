"""A modality of one's own in one file: `radio`, windows of complex IQ samples.

    python examples/radio_iq.py make radio.npz
    infi-convert --plugin examples/radio_iq.py train radio.npz --modality radio \\
        --model radio_iq:classify --task value:bpsk,qpsk --end 0.5 --target-accuracy 0.9 \\
        -o radio.infi
    infi-edge --plugin examples/radio_iq.py evaluate radio.infi --source radio.npz \\
        --model radio_iq:classify --start 0.5

The five things a modality needs:
1. a name (`tag`) and fields, which the bundle stores; `problem` refuses impossible ones;
2. `shape` and `dtype` of what the filter reads, from which its network follows;
3. `tensor`: from an input to that array, in training and on the device; ValueError for bad inputs;
4. `features` and `feature_count`: cheap fixed numbers, which are all that the light filter sees;
5. `@register`, and recordings of such inputs: a .npz whose `inputs` has one input a row.

The expensive workload is here too: `classify` says which modulation a window carries (the task of
InFi's extended paper). The signals of `make` are computed by this program, not received by a radio:
they show how a modality is written, not what a filter saves on the air.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from infi_edge.preprocess import Spec, register

WINDOW, SYMBOL = 256, 8
"""Samples in a window; samples a symbol."""
OCTAVES = 7
EIGHT = np.exp(2j * np.pi * np.arange(8) / 8)
SQUARE = np.array([complex(i, q) for i in (-3, -1, 1, 3) for q in (-3, -1, 1, 3)]) / np.sqrt(10)
POINTS = {"bpsk": EIGHT[::4], "qpsk": EIGHT[::2], "8psk": EIGHT, "16qam": SQUARE}
"""Constellations of power 1."""


@register
class RadioSpec(Spec, frozen=True, forbid_unknown_fields=True, tag="radio"):
    """Windows of `window` IQ samples.

    rate_hz, symbols_hz: samples and symbols a second, a whole number of samples a symbol.
    """

    window: int = WINDOW
    rate_hz: float = 1e6
    symbols_hz: float = 1e6 / SYMBOL

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.window, 2)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def feature_count(self) -> int:
        return 10 + OCTAVES

    def problem(self) -> str | None:
        if not 0 < self.symbols_hz < self.rate_hz < np.inf:
            return f"rate: {self.symbols_hz} symbols, {self.rate_hz} samples a second"
        symbol = self.rate_hz / self.symbols_hz
        if abs(symbol - round(symbol)) > 1e-6:
            return f"rate: {symbol:g} samples a symbol; resample to a whole number"
        return None if 4 * symbol <= self.window <= 1 << 20 else f"window: {self.window} samples"

    def tensor(self, data: np.ndarray) -> np.ndarray:
        """data: complex (window,), or I and Q (window, 2) as integers or floats, at any gain."""
        if not isinstance(data, np.ndarray) or data.dtype.kind not in "iufc":
            raise ValueError("radio is an array of complex numbers or of I and Q")
        if data.dtype.kind == "c":
            data = np.stack([data.real, data.imag], axis=-1)
        if data.shape != self.shape:
            raise ValueError(f"a window is {self.shape} here (samples, I and Q), not {data.shape}")
        values = data.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("IQ with a value that is not a number")
        values /= max(float(np.abs(values).max()), 1e-300)
        power = float(np.square(values).sum(axis=1).mean())
        return (values / np.sqrt(power or 1.0)).astype(np.float32)[None]

    def features(self, tensor: np.ndarray) -> np.ndarray:
        """Envelope, moments and cumulants of the symbols (Swami and Sadler 2000), octaves."""
        x = tensor[0, :, 0].astype(np.float64) + 1j * tensor[0, :, 1]
        power = np.square(np.abs(np.fft.fft(x))) / len(x) ** 2
        edges = 0.5 ** np.arange(OCTAVES, 1, -1)
        octaves = np.searchsorted(edges, np.abs(np.fft.fftfreq(len(x))), "right")
        bands = np.bincount(octaves, power, OCTAVES)
        # Means over a symbol stand in for the matched filter; the strongest timing is taken.
        symbol = round(self.rate_hz / self.symbols_hz)
        sums = np.convolve(x, np.full(symbol, 1 / symbol), "valid")
        timings = sums[: len(sums) // symbol * symbol].reshape(-1, symbol)
        strength = np.square(np.abs(timings)).mean(axis=0)
        z = timings[:, strength.argmax()] / np.sqrt(max(strength.max(), 1e-12))
        c20, m40, m42 = np.mean(z**2), np.mean(z**4), np.mean(np.abs(z) ** 4)
        c40, c42 = abs(m40 - 3 * c20**2), m42 - abs(c20) ** 2 - 2
        eighth = abs(np.mean(z**8)) / max(np.mean(np.abs(z) ** 8), 1e-12)
        spread = [abs(x).mean(), abs(x).max() / 4, strength.max(), np.ptp(strength), m42 / 4]
        moments = [abs(c20), abs(m40) / max(m42, 1e-12), min(c40 / 2, 1), min(c42 / 2, 1), eighth]
        return np.array([*spread, *moments, *bands], np.float32)


def pulse(offset: float = 0.0, rolloff: float = 0.35) -> np.ndarray:
    """The wave of one symbol: a root raised cosine of energy 1. offset: in samples."""
    t = (np.arange(8 * SYMBOL + 1) - offset) / SYMBOL - 4 + 1e-8  # not quite 0, where it is 0/0
    wave = np.sin(np.pi * t * (1 - rolloff)) + 4 * rolloff * t * np.cos(np.pi * t * (1 + rolloff))
    wave /= np.pi * t * (1 - (4 * rolloff * t) ** 2)
    return wave / np.linalg.norm(wave)


PULSE = pulse()
PHASES = np.exp(1j * np.arange(0, np.pi, np.pi / 32))
DRIFTS = (-0.02, 0.0, 0.02)
"""Radians a symbol that the carrier may be off by."""
NOISE_SCORE = 8.0
"""Natural logarithm: how much likelier than noise a signal must look at its best place."""


def classify(iq: np.ndarray) -> str:
    """Return noise, bpsk, qpsk, 8psk or 16qam: the likeliest, over timings, drifts and phases.

    iq: complex (N,) or I and Q (N, 2), at any gain. A generalized likelihood ratio test (Panagiotou
    and others, MILCOM 2000) of each constellation against noise, whose level is read outside the
    band. Samples that are no numbers count as lost; too few samples are noise.
    """
    iq = np.where(np.isfinite(iq), iq, 0)
    x = iq if np.iscomplexobj(iq) else iq[:, 0] + 1j * iq[:, 1]
    if len(x) < len(PULSE) + 4 * SYMBOL or not x.any():
        return "noise"
    x = x / np.abs(x).max()
    outside = np.abs(np.fft.fftfreq(len(x))) > 1 / SYMBOL
    level = np.square(np.abs(np.fft.fft(x)))[outside].mean() / len(x)
    y = np.convolve(x, PULSE, "valid")
    y = y[: len(y) // SYMBOL * SYMBOL].reshape(-1, SYMBOL)  # a column a timing
    strength = np.square(np.abs(y)).mean(axis=0)
    amplitude = np.sqrt(np.maximum(strength - level, 0.01 * strength))
    level += 0.01 * strength.max()  # what the grid and neighbouring symbols leave
    scores = {"noise": NOISE_SCORE}
    for kind, points in POINTS.items():
        # Half a turn repeats bpsk; a quarter, qpsk and 16qam; an eighth, 8psk.
        phases = PHASES[: {"bpsk": 32, "8psk": 8}.get(kind, 16)]
        turned = np.outer(phases, points)
        scores[kind] = max(_score(y, turned, amplitude, level, drift) for drift in DRIFTS)
    return max(scores, key=lambda kind: scores[kind])


def _score(
    y: np.ndarray, turned: np.ndarray, amplitude: np.ndarray, level: float, drift: float
) -> float:
    """The log likelihood ratio to noise at the best timing and phase.

    y: (symbols, timings). turned: (phases, points). amplitude: (timings,).
    """
    z = y * np.exp(-1j * drift * np.arange(len(y)))[:, None] * amplitude
    flat = np.stack([z.real, z.imag], axis=-1).reshape(-1, 2).astype(np.float32)
    likeness = flat @ np.stack([turned.real, turned.imag]).reshape(2, -1).astype(np.float32)
    likeness = likeness.reshape(*z.shape, *turned.shape) * np.float32(2 / level)
    energy = np.multiply.outer(np.square(amplitude), np.square(np.abs(turned))) / level
    likeness -= energy.astype(np.float32)
    most = likeness.max(axis=-1)
    mean = np.exp(likeness - most[..., None]).mean(axis=-1)
    return float((most + np.log(mean)).sum(axis=0).max())


def stream(windows: int = 2000, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Return what a receiver might hear, float32 (windows, WINDOW, 2), and what was sent.

    A transmitter stays for 16 to 48 windows, silence for 8 to 24; each has its own modulation,
    phase, timing and drift, and fades; the noise drifts between -13 and 1 dB of the signal.
    """
    rng = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    sent: list[str] = []
    while len(sent) < windows * WINDOW:
        for kind in rng.permutation([*POINTS, "noise", "noise"]).tolist():
            length = int(rng.integers(8, 25)) * WINDOW * (1 if kind == "noise" else 2)
            length += int(rng.integers(WINDOW))  # changes do not wait for a window's end
            pieces.append(_transmission(kind, length, rng))
            sent += [kind] * length
    signal = np.concatenate(pieces)[: windows * WINDOW]
    level = 10 ** (_wander(len(signal), 40 * WINDOW, rng).real.clip(-1, 1) * 0.35 - 0.3)
    iq = signal + level * _gaussian(len(signal), rng)
    inputs = np.stack([iq.real, iq.imag], axis=-1).astype(np.float32).reshape(-1, WINDOW, 2)
    return inputs, sent[WINDOW // 2 : windows * WINDOW : WINDOW]


def _transmission(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "noise":
        return np.zeros(length, np.complex128)
    symbols = rng.choice(POINTS[kind], length // SYMBOL + 1)
    impulses = np.zeros(len(symbols) * SYMBOL, np.complex128)
    impulses[::SYMBOL] = symbols * np.sqrt(SYMBOL)
    wave = np.convolve(impulses, pulse(rng.uniform(0, SYMBOL)), "same")[:length]
    drift = rng.uniform(-0.02, 0.02) / SYMBOL
    turn = np.exp(1j * (rng.uniform(0, 2 * np.pi) + drift * np.arange(length)))
    return wave * turn * (1 + 0.25 * _wander(length, 10 * WINDOW, rng))


def _gaussian(count: int, rng: np.random.Generator) -> np.ndarray:
    """Complex numbers of power 1."""
    return rng.standard_normal((count, 2)) @ np.array([1, 1j]) / np.sqrt(2)


def _wander(length: int, every: int, rng: np.random.Generator) -> np.ndarray:
    """Such numbers, one `every` samples, joined by lines."""
    places = np.arange(0, length + every, every)
    return np.interp(np.arange(length), places, _gaussian(len(places), rng))


def main() -> None:
    """The command `make`."""
    parser = argparse.ArgumentParser(description="Make a recording of synthetic radio signals.")
    parser.add_argument("command", choices=["make"])
    parser.add_argument("file", type=Path, help="NAME.npz")
    parser.add_argument("--windows", type=int, default=2000)
    options = parser.parse_args()
    if options.file.suffix != ".npz" or options.windows < 1:
        parser.error("give a file NAME.npz, and at least one window")
    inputs, _ = stream(options.windows)
    try:
        np.savez(options.file, inputs=inputs)
    except OSError as error:
        parser.error(f"{options.file} cannot be written: {error.strerror}")
    print(f"{options.file}: {len(inputs)} windows of {WINDOW} samples, made by this program")


if __name__ == "__main__":
    main()
