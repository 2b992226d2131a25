"""The statistics keep their promises: on simulated experiments with a known effect, and with none."""

import math

import numpy as np
import pytest

from common.statistics import MIN_PAIRS, flip_p, holm, mean_sd, paired, t_quantile, t_within, verdict


@pytest.mark.parametrize(
    ("p", "df", "t"),  # as in any printed table
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 4, 2.776), (0.975, 9, 2.262), (0.975, 30, 2.042),
     (0.975, 120, 1.980), (0.95, 7, 1.895), (0.995, 4, 4.604), (0.9, 1, 3.078), (0.999, 5, 5.893)],
)  # fmt: skip
def test_quantiles_of_students_t(p, df, t):
    assert t_quantile(p, df) == pytest.approx(t, abs=6e-4)
    assert t_quantile(1 - p, df) == pytest.approx(-t, abs=6e-4)
    assert (1 + t_within(t_quantile(p, df), df)) / 2 == pytest.approx(p, abs=1e-12)


def test_a_worked_example():
    e = paired([0.1, 0.2, 0.1], [0.5, 0.7, 0.6])  # differences .4 .5 .5
    assert (e.n, e.ups, e.downs) == (3, 3, 0)
    assert e.mean == pytest.approx(1.4 / 3)
    assert e.sd == pytest.approx(0.057735, abs=1e-6)
    assert (e.low, e.high) == pytest.approx((0.32324, 0.61009), abs=1e-4)
    assert e.p == pytest.approx(0.00507, abs=1e-4)  # t = 14, 2 degrees of freedom
    assert e.flips == 0.25  # 2 of 8 sign patterns are as far out


def test_degenerate_differences():
    assert math.isnan(paired([0.1], [0.2]).p)
    assert math.isnan(mean_sd([1.0])[1])
    same = paired([0.3] * 5, [0.3] * 5)
    assert (same.p, same.flips, same.low, same.high) == (1, 1, 0, 0)
    assert paired([0.0] * 5, [0.5] * 5).p == 0


def test_sign_flips_exact_and_sampled():
    assert flip_p([1, 1, 1, 1, 1]) == 2 / 32
    assert flip_p([1, -2, 4]) == 6 / 8  # sums 7, 5, 3, 1 and their opposites: 1 is less far out than 3
    assert flip_p([0.1, 0.2, 0.3, -0.6]) == 1  # they cancel: 1e-16 in this order, half of it in another
    d = list(np.random.default_rng(0).normal(0.5, 1, 17))
    assert flip_p(d) == flip_p(d)
    assert flip_p(d) == pytest.approx(paired([0.0] * 17, d).p, abs=0.02)  # normal differences: the tests agree


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01], k=8) == pytest.approx([0.08])
    assert holm([0.5, 0.9]) == [1, 1]


def simulate(effect: float, n: int = MIN_PAIRS, runs: int = 4000, seed: int = 0) -> list:
    d = np.random.default_rng(seed).normal(effect, 1, (runs, n))
    return [paired([0.0] * n, list(row)) for row in d]


@pytest.mark.parametrize("effect", [0.0, 1.5])
@pytest.mark.parametrize("n", [5, 8])
def test_intervals_cover_the_truth(effect, n):
    covered = [e.low <= effect <= e.high for e in simulate(effect, n)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_power_is_what_the_docstring_of_verdict_says():
    for effect, promised in ((1.5, 0.7), (2.0, 0.9)):
        found = np.mean([verdict(e) == "helps" for e in simulate(effect)])
        assert found == pytest.approx(promised, abs=0.03)


def test_the_best_of_8_rarely_helps_when_nothing_does():
    """Select on one run each, confirm on 5 fresh pairs: the protocol of search.py. And what it would be without."""
    random, fresh, reused, corrected = np.random.default_rng(1), 0, 0, 0
    for _ in range(3000):
        search = random.normal(0, 1, (8, 5))
        best = search.mean(1).argmax()
        again = paired([0.0] * 5, list(search[best]))
        fresh += verdict(paired([0.0] * 5, list(random.normal(0, 1, 5)))) == "helps"
        reused += verdict(again) == "helps"
        corrected += verdict(again, holm([again.p], 8)[0]) == "helps"
    assert fresh / 3000 <= 0.05
    assert corrected / 3000 <= 0.05
    assert reused / 3000 > 0.1, "otherwise this test could not tell a good protocol from a bad one"


def test_words():
    helps, hurts = paired([0.0] * 5, [0.1, 0.11, 0.12, 0.1, 0.1]), paired([0.1, 0.11, 0.12, 0.1, 0.1], [0.0] * 5)
    assert verdict(helps) == "helps"
    assert verdict(hurts) == "hurts"
    assert verdict(paired([0.0] * 4, [0.1, 0.11, 0.12, 0.1])) == "undecided"  # too few pairs for any word
    assert verdict(paired([0.0] * 5, [0.001, -0.001, 0, 0.001, 0])) == "no effect found at ±1 pp"
    assert verdict(paired([0.0] * 5, [0.1, -0.1, 0, 0.1, 0])) == "undecided"
    assert verdict(helps, p=0.06) == "undecided"
    assert verdict(helps, controls={"a random seed": helps, "no seed": hurts}) == "helps, as does no seed"
