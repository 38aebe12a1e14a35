"""Golden odds ratios, p-values and q-values for select: 2 x 2 tables of firing counts, small and of millions of tokens. p by exact
summation in 60 digits (mpmath); SciPy must agree wherever its p does not underflow, and gives the odds ratios and the q-values.

usage: make_select.py OUT.json [CASES]      needs scipy, mpmath
"""
import json
import random
import sys

import mpmath
import scipy
from scipy import stats

SEED = 4


def exact(a, A, b, B):
    """log10 P(X >= a) of the hypergeometric distribution."""
    n = a + b
    low, high = max(0, n - B), min(n, A)
    if a <= low:
        return 0.0
    choose = lambda m, k: mpmath.loggamma(m + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(m - k + 1)
    at = lambda x: mpmath.exp(choose(A, x) + choose(B, n - x) - choose(A + B, n))
    upper = a * (A + B) > n * A
    x = a if upper else a - 1
    term = total = at(x)
    while (x < high if upper else x > low) and term > total * mpmath.mpf(10) ** -40:
        if upper:
            term *= mpmath.mpf(A - x) * (n - x) / ((x + 1) * (B - n + x + 1))
        else:
            term *= mpmath.mpf(x) * (B - n + x) / ((A - x + 1) * (n - x + 1))
        x += 1 if upper else -1
        total += term
    return float(mpmath.log10(total if upper else 1 - total))


def table(rng):
    A, B = (rng.choice([1, 3, 20, 500, 20000, 250000, 3500000]) + rng.randrange(3) for _ in range(2))
    rate = rng.choice([0, 1e-5, 1e-3, 0.01, 0.2, 0.5, 0.97, 1])
    near = lambda n, r: max(0, min(n, int(rng.gauss(n * r, (n * r * (1 - r)) ** 0.5 + 0.5))))
    more = rng.choice([1, 1, 1.01, 1.2, 3, 10, 0.7])
    return near(A, min(1, rate * more)), A, near(B, rate), B


def main(out, cases=400):
    mpmath.mp.dps = 60
    rng, rows = random.Random(SEED), []
    while len(rows) < cases:
        a, A, b, B = table(rng)
        odds, p = stats.fisher_exact([[a, A - a], [b, B - b]], alternative="greater")
        log10_p = exact(a, A, b, B)
        if 1e-290 < p:
            assert abs(10 ** log10_p / p - 1) < 1e-6, (a, A, b, B, p, 10 ** log10_p)
        rows.append([a, A, b, B, None if odds != odds else 1e9 if odds == float("inf") else odds, log10_p])
    p = [10 ** r[5] for r in rows]
    q = stats.false_discovery_control(p, method="bh")
    with open(out, "w") as f:
        f.write('{"source": "scipy %s, mpmath %s, seed %d", "columns": "a, A, b, B, odds ratio, log10 p, q", "rows": [\n' % (scipy.__version__, mpmath.__version__, SEED))
        f.write(",\n".join(json.dumps(r + [float(x)]) for r, x in zip(rows, q)) + "\n]}\n")


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) for a in sys.argv[2:]))
