"""Every combination of the settings of test_evidence, once by hand: E[Ẑ] = Z in all 5625.

    PYTHONPATH=tests python tests/steering/whole_evidence.py FILE.jsonl [--part 0/2]

Writes a line for each combination, goes on where it was stopped, and judges at the end every
combination by itself, all of them at Bonferroni's 1e-3, which holds whatever depends on what: 25
seeds are shared, so that the noise of the particles, most of the time, is drawn 25 times only.
Parts run side by side, each with its file; `--judge FILES` judges them together.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from test_evidence import POPULATIONS, SETTINGS, case, deviation, ratios, run
from tqdm import tqdm

from glass_flows.noise import KeyedNoise

COMBINATIONS = list(itertools.product(*map(range, map(len, SETTINGS.values()))))
SEEDS, ALARM = 25, 1e-3
LIMIT = stats.norm.isf(ALARM / len(COMBINATIONS) / 2)


def draw_noise_once() -> None:
    """Keep every noise that was drawn: some 100 MB for 25 seeds of 20,000 populations."""
    drawn, kept = KeyedNoise.__call__, {}

    @functools.wraps(drawn)
    def again(self, step, like, *purpose_and_draw):
        key = (self.seed, self.first_particle, step, like.shape, like.dtype, *purpose_and_draw)
        if key not in kept:
            kept[key] = drawn(self, step, like, *purpose_and_draw)
        return kept[key].clone()

    KeyedNoise.__call__ = again


def measured(number: int, populations: int) -> dict[str, object]:
    line = COMBINATIONS[number]
    given = case(line)
    result = run(10_000 + number % SEEDS, populations=populations, progress=False, **given)
    assert result.biases == ()
    found = ratios(result, given["scale"])
    return {"line": line, "mean": found.mean(), "error": found.std() / len(found) ** 0.5,
            "z": deviation(found), "skewness": stats.skew(found)}  # fmt: skip


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def judged(rows: list[dict[str, object]], populations: int) -> bool:
    """Print what was found; whether all of it is within the rates."""
    z, skewness = (np.array([abs(row[name]) for row in rows]) for name in ("z", "skewness"))
    edgeworth = skewness * (LIMIT**3 - 3 * LIMIT) / (6 * populations**0.5)
    skewed, worst = edgeworth > 1.0, max(rows, key=lambda row: abs(row["z"]))
    print(f"{len(rows)} of {len(COMBINATIONS)} combinations, {populations} populations each")
    print(f"root mean square of z {np.sqrt((z**2).mean()):.3f}; above 2: {(z > 2).mean():.2%}")
    print(f"largest z {worst['z']:.2f} (limit {LIMIT:.2f}) of {worst['line']}")
    print(f"of {skewed.sum()}, too skewed (first Edgeworth term at the limit above 1), the largest")
    print(f"z is {z[skewed].max(initial=0.0):.2f}")
    return bool(z.max() < LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="what was measured, a line for each")
    parser.add_argument("--populations", type=int, default=POPULATIONS)
    parser.add_argument("--part", default="0/1", metavar="I/N", help="every N-th from the I-th on")
    parser.add_argument("--judge", action="store_true", help="measure nothing")
    given = parser.parse_args()
    if not given.judge:
        (file,), (first, every) = given.files, map(int, given.part.split("/"))
        draw_noise_once()
        mine = range(first, len(COMBINATIONS), every)
        done = len(read(file))
        with file.open("a") as out:
            for number in tqdm(mine[done:], initial=done, total=len(mine)):
                found = measured(number, given.populations)
                print(json.dumps(found, default=float), file=out, flush=True)
    rows = [row for file in given.files for row in read(file)]
    return 0 if judged(rows, given.populations) else 1


if __name__ == "__main__":
    sys.exit(main())
