"""Golden values of paired statistics: tests/analysis/golden/paired.json. McNemar's exact p by scipy; the bootstrap written once more in numpy
with the same generator (splitmix64), so the same bits, and scipy's own percentile bootstrap of many draws beside it.
  python tools/golden/make_paired.py tests/analysis/golden"""
import json
import os
import sys

import numpy as np
import scipy
from scipy import stats

M64, SEED, DRAWS = (1 << 64) - 1, 12345, 10000


def split_mix(state):
    """The next numbers of many generators at once."""
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state, z ^ (z >> np.uint64(31))


def bootstrap(difference, seed):
    n = len(difference)
    _, first = split_mix(np.array([seed], dtype=np.uint64))
    with np.errstate(over="ignore"):
        state = first[0] + np.arange(DRAWS, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
    total = np.zeros(DRAWS)
    for _ in range(n):
        state, r = split_mix(state)
        low, high = (r & np.uint64(0xFFFFFFFF)) * np.uint64(n), (r >> np.uint64(32)) * np.uint64(n)
        total += difference[((high + (low >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)]
    return [float(x) for x in np.percentile(total / n, [2.5, 97.5])]


def main(out):
    rng = np.random.default_rng(7)
    golden = {"made by": f"tools/golden/make_paired.py, scipy {scipy.__version__}, numpy {np.__version__}", "mcnemar": [], "bootstrap": []}
    for lost, gained in [(0, 0), (1, 0), (0, 5), (3, 3), (4, 5), (10, 2), (57, 17), (147, 12), (500, 501), (900, 300), (2000, 1200), (30000, 29500)]:
        p = stats.binomtest(min(lost, gained), lost + gained, 0.5).pvalue if lost + gained else 1.0
        golden["mcnemar"].append([lost, gained, p])
    for n, soft in [(1, False), (39, False), (600, False), (250, True)]:
        base = rng.integers(0, 4, n) / 3 if soft else (rng.random(n) < 0.8).astype(float)
        after = rng.integers(0, 4, n) / 3 if soft else np.where(rng.random(n) < 0.2, 1 - base, base)
        d = after - base
        ci = stats.bootstrap((d,), np.mean, n_resamples=200000, method="percentile", random_state=1, batch=1000).confidence_interval if n > 1 else (d[0], d[0])
        golden["bootstrap"].append({"baseline": base.tolist(), "intervened": after.tolist(), "seed": SEED, "ci": bootstrap(d, SEED), "scipy": [float(ci[0]), float(ci[1])],
                                    "delta": float(after.mean() - base.mean()), "lost": int((d < 0).sum()), "gained": int((d > 0).sum())})
    json.dump(golden, open(os.path.join(out, "paired.json"), "w"))


if __name__ == "__main__":
    main(*sys.argv[1:])
