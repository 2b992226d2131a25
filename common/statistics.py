"""Paired statistics of a few runs: what a difference is, how sure it is, and the word for it.

All differences are seeded minus baseline at the same seed, in the metric's own unit (a share: 0.01 is a percentage
point). Student's t in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4), so nothing but numpy is needed.
"""

import math
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05  # of every test, two-sided
MIN_PAIRS = 5  # of a claim
MARGIN = 0.01  # differences smaller than this don't matter: one percentage point
EXACT_FLIPS = 16  # up to 2^16 sign patterns are all tried, beyond that DRAWS random ones
DRAWS = 20000

RULES = (
    f"Verdicts: **helps** (**hurts**): at least {MIN_PAIRS} pairs, mean difference above (below) 0, two-sided paired "
    f"t-test with Holm's correction p < {ALPHA}; **helps, as does X**: the same, but the 95 % interval of seeded minus "
    "control X reaches 0; **no effect found at ±m pp**: at least as many pairs, the 95 % interval lies within ±m; "
    "**undecided**: anything else."
)


def t_within(t: float, df: int) -> float:
    """P(|T| <= t) for Student's t with `df` degrees of freedom (a whole number), t >= 0."""
    theta = math.atan(t / math.sqrt(df))
    cos2, odd = math.cos(theta) ** 2, df % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for i in range(1, df // 2 + 1):  # 1 + cos^2 * 1/2 + ..., or cos + cos^3 * 2/3 + ...
        total += term
        term *= cos2 * ((2 * i) / (2 * i + 1) if odd else (2 * i - 1) / (2 * i))
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def t_quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p, by bisection to the last bit; df >= 1 and whole, 0 < p < 1."""
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_within(high, df) < 2 * p - 1:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, df) < 2 * p - 1 else (low, middle)
    return high


def mean_sd(x: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is nan for one value."""
    mean = sum(x) / len(x)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in x) / (len(x) - 1)) if len(x) > 1 else math.nan


def flip_p(differences: list[float]) -> float:
    """Two-sided p of the sign-flip permutation test of the mean: each difference could have had the other sign.

    Exact up to 16 differences, else 20,000 random patterns with a fixed seed. It assumes no normality, but n pairs
    can't give less than 2 / 2^n: 0.0625 for five.
    """
    d = np.asarray(differences, float)
    if len(d) <= EXACT_FLIPS:
        signs = 1 - 2 * (np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1)
    else:
        signs = np.random.default_rng(0).choice([-1, 1], (DRAWS, len(d)))
        signs[0] = 1  # what was observed is one of the patterns
    rounding = 1e-12 * abs(d).sum()  # sums in another order differ in their last bits, also where all cancels
    as_far = abs(signs @ d) >= abs(d.sum()) - rounding
    return float(as_far.mean())


@dataclass(frozen=True)
class Paired:
    """What `paired` finds. low, high: 95 % t-interval of the mean; p: of the paired t-test; flips: of flip_p."""

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float
    flips: float
    ups: int
    downs: int


def paired(off: list[float], on: list[float]) -> Paired:
    """The differences on[i] - off[i]; interval, sd and p are nan for a single pair."""
    d = [b - a for a, b in zip(off, on, strict=True)]
    n, (mean, sd) = len(d), mean_sd(d)
    half, p = math.nan, math.nan
    if n > 1:
        error = sd / math.sqrt(n)
        half = t_quantile(0.975, n - 1) * error
        p = 1 - t_within(abs(mean) / error, n - 1) if error else float(mean == 0)
    return Paired(n, mean, sd, mean - half, mean + half, p, flip_p(d), sum(x > 0 for x in d), sum(x < 0 for x in d))


def holm(ps: list[float], k: int = 0) -> list[float]:
    """Holm's step-down correction of `ps`, in their order. k: how many were tried, if the others are not in `ps`.

    Others count as larger than all given, so the best of k alone becomes k * p (Bonferroni).
    """
    k, out, at_least = max(k, len(ps)), [math.nan] * len(ps), 0.0
    known = [i for i in range(len(ps)) if not math.isnan(ps[i])]
    for rank, i in enumerate(sorted(known, key=lambda i: ps[i])):
        out[i] = at_least = max(at_least, min(1.0, (k - rank) * ps[i]))
    return out


def verdict(effect: Paired, p: float | None = None, controls: dict[str, Paired] | None = None, margin=MARGIN) -> str:
    """The word for an effect, by fixed rules (RULES, which stands under the tables):

    helps, hurts        at least MIN_PAIRS pairs, and p < ALPHA in the direction of the mean
    helps, as does X    the same, but the seeded arm minus control X (`controls`) has a 95 % interval that reaches 0
    no effect found     at least MIN_PAIRS pairs, and the 95 % interval of the mean within +-margin
    undecided           anything else

    p: of the two-sided paired t-test, corrected for how many were tried; default: the effect's own. With MIN_PAIRS = 5
    and sd s of the differences, a true effect of 2 s is found in 9 of 10 experiments, one of 1.5 s in 7 of 10.
    """
    p = effect.p if p is None else p
    if effect.n < MIN_PAIRS:
        return "undecided"
    if p < ALPHA:
        same = [name for name, c in (controls or {}).items() if not c.low > 0]
        return "hurts" if effect.mean < 0 else f"helps, as does {' and '.join(same)}" if same else "helps"
    if -margin <= effect.low and effect.high <= margin:
        return f"no effect found at ±{100 * margin:g} pp"
    return "undecided"
