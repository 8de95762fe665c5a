"""Every combination of the settings of test_evidence, once by hand: E[Ẑ] = Z in all 5625.

    PYTHONPATH=tests python tests/steering/whole_evidence.py FILE.jsonl [--populations 1000]

Writes a line for each combination, goes on where it was stopped, and judges at the end: every
combination by itself, and, as so few populations say little of one, all combinations pooled in
which two settings have the same two values. Rates: Bonferroni's, 1e-3 for all of it together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from test_evidence import NAMED, SETTINGS, case, deviation, ratios, run
from tqdm import tqdm

SIZES = [len(values) for values in SETTINGS.values()]
ALARM = 1e-3


def measured(line: tuple[int, ...], seed: int, populations: int) -> dict[str, object]:
    given = case(line)
    result = run(seed, populations=populations, progress=False, **given)
    assert result.biases == ()
    found = ratios(result, given["scale"])
    return {"line": line, "mean": found.mean(), "error": found.std() / len(found) ** 0.5,
            "z": deviation(found), "skewness": stats.skew(found)}  # fmt: skip


def judged(rows: list[dict[str, object]]) -> bool:
    """Print what was found; whether all of it is within the rates."""
    z, lines = np.array([row["z"] for row in rows]), np.array([row["line"] for row in rows])
    pooled = {}
    for (i, (one, first)), (j, (other, second)) in itertools.combinations(enumerate(NAMED), 2):
        for a, b in itertools.product(range(len(first)), range(len(second))):
            mine = z[(lines[:, i] == a) & (lines[:, j] == b)]
            pooled[f"{one} {a}, {other} {b}"] = mine.sum() / len(mine) ** 0.5
    checks = len(z) + len(pooled)
    limit = stats.norm.isf(ALARM / checks / 2)
    where, most = max(pooled.items(), key=lambda item: abs(item[1]))
    print(f"{len(z)} combinations, z: mean {z.mean():+.3f}, standard deviation {z.std():.3f}, ")
    print(f"largest {abs(z).max():.2f}; {len(pooled)} pairs, largest {abs(most):.2f} ({where}); ")
    print(f"limit {limit:.2f}; largest skewness {max(abs(row['skewness']) for row in rows):.1f}")
    return bool(abs(z).max() < limit and abs(most) < limit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--populations", type=int, default=1_000)
    given = parser.parse_args()
    done = []
    if given.out.exists():
        done = [json.loads(line) for line in given.out.read_text().splitlines()]
    lines = list(itertools.product(*(range(size) for size in SIZES)))
    with given.out.open("a") as file:
        for seed in tqdm(range(len(done), len(lines)), initial=len(done), total=len(lines)):
            done.append(measured(lines[seed], 10_000 + seed, given.populations))
            print(json.dumps(done[-1], default=float), file=file, flush=True)
    return 0 if judged(done) else 1


if __name__ == "__main__":
    sys.exit(main())
