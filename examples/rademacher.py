"""Is the filter's family simpler than the model's? Small families where both can be computed.

Prints the empirical Rademacher complexities of both for every numbered statement of
docs/filterability.md, and draws their ratios. The suprema are exact for the families named (in
the plane: of 180 directions); only the random signs are sampled. Takes a few seconds.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

import numpy as np

DIRECTIONS = np.array([[np.cos(a), np.sin(a)] for a in np.arange(180) * (2 * np.pi / 180)])
LENGTHS = np.array([0.5, 1.0, 2.0, 4.0])  # of w in the scores w.x; the last is their bound
THRESHOLDS = np.array([0.6, 0.99, *np.linspace(0.505, 0.985, 49)])  # T; the first two: C3, C4


class Row(NamedTuple):
    """A comparison on n inputs; model, filter: the suprema over n, one per draw of the signs."""

    name: str  # "ID filter | model"
    says: str  # how docs/filterability.md orders filter and model: "<" or ">"
    model: np.ndarray
    filter: np.ndarray
    n: int

    def found(self) -> str:
        """Return '<' or '>', or '~' where three standard errors of the difference do not tell."""
        gap = self.filter - self.model
        return "~" if abs(gap.mean()) <= 3 * error(gap) else ">" if gap.mean() > 0 else "<"


def error(values: np.ndarray) -> float:
    """Return the standard error of the mean of independent values."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def finite(functions: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return the suprema over functions (m, n) of sum_i sign_i f(x_i); signs: (draws, n)."""
    return (signs @ functions.T.astype(float)).max(axis=1)


def monotone(rewards: np.ndarray) -> np.ndarray:
    """Return the best sums of rewards (draws, n, labels) over labels that never fall along n."""
    best = np.zeros(rewards[:, 0].shape)
    for i in range(rewards.shape[1]):
        best = np.maximum.accumulate(best, axis=1) + rewards[:, i]
    return best.max(axis=1)


def walk(signs: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the partial sums of the signs taken in that order: (draws, n + 1), from 0."""
    return np.pad(np.cumsum(signs[:, order], axis=1), ((0, 0), (1, 0)))


def planes(x: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the suprema over the half-planes w.x + c > 0 and over the slabs |w.x + c| < t."""
    half, slab = np.zeros((2, len(signs)))
    for direction in DIRECTIONS:
        sums = walk(signs, np.argsort(x @ direction))
        half = np.maximum(half, sums.max(axis=1))
        slab = np.maximum(slab, (sums - np.minimum.accumulate(sums, axis=1)).max(axis=1))
    return half, slab


def doubtful(x: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return, per threshold, the suprema over {confidence of the score w.x < T}, |w| bounded."""
    narrowest = np.log(THRESHOLDS / (1 - THRESHOLDS)) / LENGTHS[-1]
    suprema = np.full((len(THRESHOLDS), len(signs)), -np.inf)
    for direction in DIRECTIONS:
        far = np.abs(x @ direction)
        sums = walk(signs, np.argsort(far))
        for j, inside in enumerate(np.searchsorted(np.sort(far), narrowest)):
            suprema[j] = np.maximum(suprema[j], sums[:, inside:].max(axis=1))
    return suprema


def compare(n: int, draws: int, rng: np.random.Generator) -> tuple[list[Row], np.ndarray]:
    """Return all rows on one sample of n points, |x| < 1, and doubtful() over n."""
    x = rng.uniform(-0.7, 0.7, (n, 2))
    signs, others = rng.choice([-1.0, 1.0], (2, draws, n))
    half, slab = planes(x, signs)
    by_t = doubtful(x, signs)
    central = finite(DIRECTIONS @ x.T > 0, signs)
    quality = walk(signs, rng.permutation(n)).max(axis=1)  # as of blur: nothing to do with x
    y = (LENGTHS[:, None, None] * (DIRECTIONS @ x.T)).reshape(-1, n)
    linear, hover = finite(y, signs), 0.05 * finite(np.tanh(y), signs)

    normal, one_hot = rng.normal(size=(draws, n, 1)), rng.normal(size=(draws, n, 4))
    spread, two, present = signs[:, :, None], np.array([1, 0, 1, 0]), np.arange(4) > 0
    each = [monotone(spread * row) for row in np.eye(4)]
    wanted, normal_wanted = monotone(spread * two), monotone(normal * two)
    p, s = 1 / (1 + np.exp(-y)), y[::24]
    either = np.concatenate([s, np.maximum(s[:, None], s).reshape(-1, n)])

    cuts, line = np.linspace(0, 2 * n, 25).astype(int)[:, None], np.arange(2 * n)
    intervals = ((line >= cuts[:, None]) & (line < cuts)).reshape(-1, 2 * n)
    left, right = np.split(intervals[:, rng.permutation(2 * n)], 2, axis=1)
    even, odd = intervals[:, ::2], intervals[:, 1::2]
    firsts, differ = finite(left, signs), finite(left ^ right, signs)

    rows = [
        ("C1 slabs | half-planes", ">", half, slab),
        ("C2 slabs | twice the half-planes", "<", 2 * half, slab),
        ("C3 confidence < 0.60, bounded w | w.x > 0", ">", central, by_t[0]),
        ("C4 confidence < 0.99, bounded w | w.x > 0", "<", central, by_t[1]),
        ("C5 confidence set by the input | half-planes", "<", half, quality),
        ("C6 |w.x| as a number | w.x", "<", linear, finite(abs(y), signs)),
        ("S1 2 of 4 ordered classes | one-hot", "<", monotone(np.sign(one_hot)), wanted),
        ("S2 S1 with Gaussians | one-hot", "<", monotone(one_hot) / 2**0.5, normal_wanted),
        ("S3 2 of 4 ordered classes | sum over 4", "<", np.sum(each, axis=0), wanted),
        ("S4 2 of 4 ordered classes | largest of 4", ">", max(each, key=np.mean), wanted),
        ("S5 loss of a subset | loss of all classes", ">", signs.sum(axis=1).clip(0), half),
        ("S6 p1 | max(p1, 1 - p1)", ">", finite(np.maximum(p, 1 - p), signs), finite(p, signs)),
        ("S7 s1 | max(s1, s2), s2 can be off", "<", finite(either, signs), finite(s, signs)),
        ("R1 count > 0 | count", "<", monotone(spread * np.arange(4)), monotone(spread * present)),
        ("R2 min(y, T) | y", "<", linear, finite(np.minimum(y, 0.5), signs)),
        ("R3 y > T | y within 0.05 of T", ">", hover, central),
        ("R4 y > T | the same y in thousandths", "<", 1000 * hover, central),
        ("R5 loss of min(y, T) | loss of y", ">", np.zeros(draws), half),
        ("P1 random pairs differ | both ends", "<", firsts + finite(right, others), differ),
        ("P2 random pairs differ | one end", ">", firsts, differ),
        ("P3 neighbours differ | one end", "<", finite(even, signs), finite(even ^ odd, signs)),
    ]
    return [Row(name, says, m / n, f / n, n) for name, says, m, f in rows], by_t / n


def draw(rows: list[Row], by_t: np.ndarray, path: str) -> None:
    """Save the ratios of all rows and, for the last sample, the filter's complexity over T."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), width_ratios=(3, 2))
    for row in rows:
        ratio = np.clip(row.filter.mean() / max(row.model.mean(), 1e-9), 0.03, 30)
        color = {"C": "C3", "S": "C0", "R": "C2", "P": "C4"}[row.name[0]]
        left.plot(ratio, row.name, "o", color=color, alpha=0.6, markersize=2 * np.log10(row.n) + 3)
    left.axvline(1, color="k")
    left.set(title="the filter's complexity as a multiple of the model's", xscale="log")
    left.set_xlabel("filter / model, clipped to 0.03 and 30 (larger dots: more inputs)")
    left.set_xticks([0.03, 0.1, 0.3, 1, 3, 10, 30], ["0.03", "0.1", "0.3", "1", "3", "10", "30"])
    left.invert_yaxis()
    model = [row.model.mean() for row in rows if row.name.startswith("C3")]
    right.axhline(model[-1], color="k", linestyle="--", label="model: w.x > 0")
    bars = 2 * by_t.std(axis=1) / by_t.shape[1] ** 0.5
    right.errorbar(THRESHOLDS[2:], by_t[2:].mean(axis=1), bars[2:], color="C3", label="filter")
    right.set(title=f"complexity on {rows[-1].n} inputs; filter: confidence of w.x < T", xlabel="T")
    right.legend(loc="lower left")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Print the table and save the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", default="rademacher.png", help="the figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 256], help="of samples")
    parser.add_argument("--draws", type=int, default=2000, help="sign vectors per sample")
    options = parser.parse_args()
    if min(options.sizes) < 4 or options.draws < 2 or options.seed < 0:
        parser.error("needs 4 inputs or more, 2 draws or more, and a seed of 0 or more")
    rng = np.random.default_rng(options.seed)
    samples = [compare(n, options.draws, rng) for n in sorted(options.sizes)]
    rows = [row for same in zip(*(found for found, _ in samples), strict=True) for row in same]
    print(f"{'filter | model':46}{'n':>5}   model             filter            says  found")
    for row in rows:
        pair = "  ".join(f"{v.mean():8.4f} ± {error(v):.4f}" for v in (row.model, row.filter))
        print(f"{row.name:46}{row.n:5}{pair}     {row.says}     {row.found()}")
    try:
        draw(rows, samples[-1][1], options.output)
    except ImportError:
        print("no figure: matplotlib is missing, pip install 'infi-edge[bench]'", file=sys.stderr)
    except (OSError, ValueError) as problem:
        sys.exit(f"{options.output} cannot be written: {problem}; choose another -o")


if __name__ == "__main__":
    main()
