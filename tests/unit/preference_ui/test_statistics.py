"""Statistics against independent libraries, worked examples, and planted truth."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc

import krippendorff
import numpy as np
import pytest
from scipy import stats

from preference_ui.statistics import (
    binomial_test,
    cohen_kappa,
    fit_dawid_skene,
    fit_rater_model,
    implied_accuracy,
    kendall_tau_b,
    krippendorff_alpha,
    ratio_interval,
    wilson_interval,
)
from preference_ui.statistics.between import kappa_of
from preference_ui.statistics.bradley_terry import Comparisons, comparisons_of
from preference_ui.statistics.intervals import MAX_UNITS, resampled_sums


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_krippendorff_alpha_equals_the_reference_library(level: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        truth = rng.integers(1, 6, 25)
        table = truth + rng.integers(-1, 2, (4, 25)) * (rng.random((4, 25)) < 0.4)
        table = np.where(rng.random(table.shape) < 0.3, np.nan, table)
        want = krippendorff.alpha(table, level_of_measurement=level)
        assert krippendorff_alpha(table, level) == pytest.approx(want, abs=1e-10)  # type: ignore[arg-type]


def test_krippendorff_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]]) == 1
    assert krippendorff_alpha([[0, 1] * 20, [1, 0] * 20]) == pytest.approx(-0.975, abs=0.01)
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1, np.nan], [np.nan, 1]]))


def test_kendall_tau_b_equals_scipy() -> None:
    rng = np.random.default_rng(1)
    for size in (2, 4, 9):
        for _ in range(40):
            a, b = rng.integers(0, 4, size), rng.integers(0, 4, size)
            want = stats.kendalltau(a, b).statistic
            assert kendall_tau_b(a, b) == pytest.approx(want, abs=1e-12, nan_ok=True)


def test_cohen_kappa_worked_examples() -> None:
    # 2 x 2 table 20, 5, 10, 15: observed 0.7, chance 0.5.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    # Quadratic weights: 1 - mean squared gap / mean squared gap over all couples of the two margins.
    rng = np.random.default_rng(2)
    a, b = rng.integers(1, 6, 60), rng.integers(1, 6, 60)
    b = np.where(rng.random(60) < 0.6, a, b)
    want = 1 - np.mean((a - b) ** 2) / np.mean((a[:, None] - b[None, :]) ** 2)
    assert cohen_kappa(a, b, "quadratic") == pytest.approx(want)
    want = 1 - np.mean(np.abs(a - b)) / np.mean(np.abs(a[:, None] - b[None, :]))
    assert cohen_kappa(a, b, "linear") == pytest.approx(want)
    assert math.isnan(cohen_kappa([1, 1], [1, 1]))


def test_kappa_of_confusion_tables_is_kappa_of_the_labels() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        a, b = rng.integers(0, 3, 40), rng.integers(0, 3, 40)
        table = np.zeros((3, 3))
        np.add.at(table, (a, b), 1)
        assert kappa_of(table[None])[0] == pytest.approx(cohen_kappa(a, b))
    assert math.isnan(kappa_of(np.diag([4.0, 0, 0])[None])[0])


def test_wilson_and_binomial_equal_scipy() -> None:
    for successes, trials in ((0, 5), (5, 5), (3, 10), (77, 100), (1, 1)):
        interval = wilson_interval(successes, trials)
        want = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert (interval.low, interval.high) == (pytest.approx(want.low, abs=1e-9), pytest.approx(want.high, abs=1e-9))
        for chance in (0.25, 0.5, 1 / 3):
            want_p = stats.binomtest(successes, trials, chance).pvalue
            assert binomial_test(successes, trials, chance) == pytest.approx(want_p, rel=1e-6)


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        sizes = rng.integers(1, 6, 60)
        # Votes on one item lean one way together: counting them as independent would cover far too seldom.
        lean = rng.beta(1, 1, 60)
        interval = ratio_interval(rng.binomial(sizes, lean), sizes, num_samples=300, seed=trial)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


def test_implied_accuracy_of_published_agreements() -> None:
    assert [round(implied_accuracy(a), 3) for a in (0.63, 0.73, 0.77, 1.0, 0.5)] == [0.755, 0.839, 0.867, 1.0, 0.5]
    rng = np.random.default_rng(4)
    right = rng.random((2, 200_000)) < 0.8
    assert implied_accuracy(float((right[0] == right[1]).mean())) == pytest.approx(0.8, abs=0.005)


def _planted(
    seed: int, betas: np.ndarray, gamma: float, lam: float, prompts: int, size: int, overlap: int
) -> tuple[Comparisons, int, np.ndarray]:
    """Rankings drawn by noisy utilities (Gumbel noise: every couple then follows Bradley-Terry exactly)."""
    rng = np.random.default_rng(seed)
    rows, qualities = [], []
    for prompt in range(prompts):
        quality, length = rng.normal(0, 1.5, size), rng.normal(0, 0.5, size)
        qualities.append(quality)
        for rater in rng.choice(betas.size, overlap, replace=False):
            place = -rng.permutation(size) / (size - 1)
            noisy = betas[rater] * quality + gamma * place + lam * length + rng.gumbel(size=size)
            rows += [
                (rater, prompt * size + i, prompt * size + j, float(noisy[i] > noisy[j]), place[i] - place[j],
                 length[i] - length[j], 2 / size)
                for i in range(size) for j in range(i + 1, size)]  # fmt: skip
    return comparisons_of(rows), prompts * size, np.concatenate(qualities)


BETAS = np.array([1.6, 1.3, 1.0, 1.0, 0.8, 0.0, -0.6])


@pytest.mark.parametrize(("prompts", "size", "overlap"), [(400, 4, 3), (600, 2, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_reliability_and_biases_are_recovered(seed: int, prompts: int, size: int, overlap: int) -> None:
    """Tolerances: 0.65 on a beta scaled to mean 1 (planted: 2.2 down to -0.8), 0.25 and 0.3 logits on the biases.

    Largest deviations seen over these seeds: 0.62, 0.15 and 0.24. The clicker and the inverter must stand apart.
    """
    data, num_responses, truth = _planted(seed, BETAS, 0.6, 0.5, prompts, size, overlap)
    model = fit_rater_model(data, BETAS.size, num_responses)
    assert np.abs(model.beta - BETAS / BETAS.mean()).max() < 0.65
    assert abs(model.beta[5]) < 0.3 and model.beta[6] < -0.4 and min(model.beta[:5]) > 0.9
    assert abs(model.position_bias - 0.6) < 0.25
    assert abs(model.length_bias - 0.5) < 0.3
    assert np.corrcoef(model.quality, truth)[0, 1] > 0.45
    assert model.rounds <= 15
    weights = model.reliability()
    assert weights[6] == 0 and weights[5] < 0.2 and min(weights[:5]) > 0.6


def test_without_biases_none_are_found() -> None:
    data, count, _ = _planted(9, np.ones(5), 0.0, 0.0, 400, 4, 3)
    model = fit_rater_model(data, 5, count)
    # Three standard errors: places are drawn anew per vote, lengths only per response.
    assert abs(model.position_bias) < 0.15 and abs(model.length_bias) < 0.26
    assert np.ptp(model.beta) < 0.5


def test_who_compared_nothing_has_no_figure() -> None:
    model = fit_rater_model(comparisons_of([]), 2, 3)
    assert np.isnan(model.beta).all() and np.isnan(model.beta_error).all() and model.reliability().tolist() == [1, 1]
    data, count, _ = _planted(1, BETAS, 0.6, 0.5, 60, 4, 2)
    alone = fit_rater_model(data, BETAS.size, count)
    shifted = dataclasses.replace(data, rater=data.rater + (data.rater >= 2))
    beside = fit_rater_model(shifted, BETAS.size + 1, count)
    assert math.isnan(beside.beta[2]) and 0 < beside.reliability()[2] <= 1
    for figures, of_others in ((beside.beta, alone.beta), (beside.beta_error, alone.beta_error)):
        assert np.delete(figures, 2).tolist() == of_others.tolist()
    assert alone.beta.mean() == pytest.approx(1)


def test_newcomers_stand_at_the_mean_and_the_fit_ends() -> None:
    """Ten raters of about 75 rankings, two of them clickers, and three of two rankings each.

    Seen: 19 rounds, newcomers at 0.88 to 1.08. While the scale drifted, all 50 rounds and newcomers at 0.3 to 2.5.
    """
    betas = np.array([1.6, 1.5, 1.3, 1.2, 1.0, 1.0, 0.8, 0.6, 0.0, 0.0, 1.0, 1.0, 0.0])
    data, count, _ = _planted(4, betas, 0.3, 0.2, 500, 4, 2)
    keep = np.ones(data.rater.size, bool)
    for newcomer in (10, 11, 12):
        keep[np.flatnonzero(data.rater == newcomer)[12:]] = False
    few = Comparisons(**{f.name: getattr(data, f.name)[keep] for f in dataclasses.fields(data)})
    model = fit_rater_model(few, betas.size, count)
    assert model.rounds <= 25
    assert np.abs(model.beta[10:] - 1).max() < 0.3 and model.beta_error[10:].min() > 0.5
    assert model.beta.mean() == pytest.approx(1) and model.beta[:10].mean() == pytest.approx(1, abs=0.1)
    assert max(model.beta[8:10]) < 0.6 < 1.2 < min(model.beta[:4])


def test_dawid_skene_recovers_classes_and_confusions() -> None:
    rng = np.random.default_rng(5)
    truth = (rng.random(600) < 0.3).astype(int)
    # (rater, true class, given class); the last rater answers at random.
    confusions = np.array([[[0.95, 0.05], [0.2, 0.8]], [[0.9, 0.1], [0.1, 0.9]], [[0.8, 0.2], [0.3, 0.7]],
                           [[0.5, 0.5], [0.5, 0.5]]])  # fmt: skip
    labels = np.array([[rng.random() < c[t, 1] for t in truth] for c in confusions]).astype(int)
    labels = np.where(rng.random(labels.shape) < 0.2, -1, labels)
    fit = fit_dawid_skene(labels)
    assert np.abs(fit.confusion - confusions).max() < 0.12
    assert abs(fit.prior[1] - 0.3) < 0.06
    right = float(((fit.posterior[:, 1] > 0.5) == truth).mean())
    votes = np.where(labels < 0, np.nan, labels)
    majority = float(((np.nanmean(votes, axis=0) > 0.5) == truth).mean())
    # Nobody can do better than somebody who knows the confusions.
    log_odds = np.log(0.3 / 0.7) + sum(
        np.where(row < 0, 0.0, np.log(c[1, row] / c[0, row])) for row, c in zip(labels, confusions, strict=True)
    )
    best = float(((log_odds > 0) == truth).mean())
    assert right >= best - 0.015 and right > majority


def test_sums_over_groups_of_units_spread_as_sums_over_units() -> None:
    """Largest difference of half a width over these seeds: 9 %; both ends carry the error of 1000 samples."""
    rng = np.random.default_rng(8)
    size = 5 * MAX_UNITS
    bottom = rng.integers(1, 6, size)
    top = rng.binomial(bottom, rng.beta(1, 1, size))
    share = top.sum() / bottom.sum()
    # The ratio's spread to first order, exact for so many units.
    spread = math.sqrt(((top - share * bottom) ** 2).sum()) / bottom.sum()
    for seed in range(5):
        interval = ratio_interval(top, bottom, seed=seed)
        assert (interval.value, interval.num_units) == (pytest.approx(share), size)
        assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * spread, rel=0.15)


def test_the_report_on_many_items_is_bounded() -> None:
    """Each unit's row is as wide as an item's coincidences; 1000 samples of 200 000 units would be 1.6 GB."""
    values = np.random.default_rng(9).random((200_000, 9))
    tracemalloc.start()
    sums = resampled_sums(values, 1000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sums.shape == (1000, 9) and peak < 120e6
    assert sums.mean(axis=0) == pytest.approx(values.sum(axis=0), rel=0.01)


def test_up_to_the_bound_every_unit_is_drawn_by_itself() -> None:
    values = np.arange(6.0).reshape(3, 2)
    counts = np.random.default_rng(4).multinomial(3, np.full(3, 1 / 3), size=5)
    assert resampled_sums(values, 5, seed=4) == pytest.approx(counts @ values)
