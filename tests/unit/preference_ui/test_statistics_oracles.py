"""The rater models against crowd-kit, and against the exact marginal likelihood by brute force."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene, NoisyBradleyTerry
from scipy import optimize, stats

from preference_ui.statistics import fit_dawid_skene, fit_rater_model
from preference_ui.statistics.bradley_terry import Comparisons, comparisons_of

BETAS = np.array([1.8, 1.2, 0.9, 0.5, 0.0])


def votes_on_one_list(seed: int, num_responses: int = 25, votes_per_rater: int = 500) -> tuple[Comparisons, np.ndarray]:
    """Single couples of one common set of responses; no place or length is known."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 1.5, num_responses)
    rows = []
    for rater, beta in enumerate(BETAS):
        for _ in range(votes_per_rater):
            i, j = rng.choice(num_responses, 2, replace=False)
            wins = rng.random() < 1 / (1 + np.exp(-beta * (quality[i] - quality[j])))
            rows.append((rater, i, j, float(wins), 0.0, 0.0, 1.0))
    return comparisons_of(rows), quality


def crowd_kit_skills(data: Comparisons, num_responses: int) -> tuple[np.ndarray, np.ndarray]:
    """Responses and skills at the maximum of crowd-kit's own likelihood.

    Its ``fit`` follows a gradient that keeps only the last vote of each rater, so the maximum is sought here; its
    penalty is left out, which is without a bound from below.
    """
    workers = BETAS.size
    table = np.stack([data.first, data.second, np.where(data.outcome == 1, data.first, data.second)], axis=1) + 1
    start = np.concatenate([np.zeros(1 + num_responses + workers), np.ones(workers)])
    given = (table, data.rater, num_responses, workers, 0.0)
    found = optimize.minimize(NoisyBradleyTerry._compute_log_likelihood, start, args=given, method="L-BFGS-B")
    assert found.success, found.message
    return found.x[1 : 1 + num_responses], found.x[-workers:]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_raters_and_responses_stand_as_crowd_kit_has_them(seed: int) -> None:
    """Its model mixes a skilled and a guessing vote instead of scaling the gap: the order must be the same."""
    data, truth = votes_on_one_list(seed)
    ours = fit_rater_model(data, BETAS.size, truth.size)
    responses, skills = crowd_kit_skills(data, truth.size)
    assert stats.spearmanr(ours.quality, responses).statistic > 0.98
    assert stats.spearmanr(ours.quality, truth).statistic > 0.95
    assert np.argsort(-ours.beta).tolist() == np.argsort(-skills).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore")
def test_dawid_skene_gives_crowd_kits_posteriors() -> None:
    rng = np.random.default_rng(3)
    truth = (rng.random(300) < 0.35).astype(int)
    right = np.array([0.95, 0.85, 0.75, 0.55])
    labels = np.where(rng.random((4, 300)) < right[:, None], truth, 1 - truth)
    labels[rng.random(labels.shape) < 0.2] = -1
    rater, task = np.nonzero(labels >= 0)
    table = pd.DataFrame({"worker": rater, "task": task, "label": labels[rater, task]})
    # Step by step: both begin with the shares of the votes, and end by different rules.
    for steps in (1, 2, 5):
        theirs = DawidSkene(n_iter=steps, tol=0).fit(table).probas_.sort_index()[1].to_numpy()
        ours = fit_dawid_skene(labels[:, np.unique(task)], smoothing=1e-9, max_steps=steps)
        assert np.abs(ours.posterior[:, 1] - theirs).max() < 1e-6


def _marginal(x: np.ndarray, data: Comparisons, num_raters: int, pairs: np.ndarray) -> float:
    """Negative log of the exact marginal likelihood, times the priors that the model states.

    Every prompt has two responses, so only their gap matters, which is normal with variance 2 spread^2.
    """
    beta, gamma, lam, spread = x[:num_raters], x[num_raters], x[num_raters + 1], np.exp(x[-1])
    nodes = np.linspace(-6, 6, 241)
    weight = stats.norm.pdf(nodes)
    gaps = nodes * spread * np.sqrt(2)
    logit = beta[data.rater][:, None] * gaps + (gamma * data.place + lam * data.length)[:, None]
    each = data.weight[:, None] * (
        data.outcome[:, None] * -np.logaddexp(0, -logit) + (1 - data.outcome[:, None]) * -np.logaddexp(0, logit)
    )
    per_pair = np.zeros((pairs.max() + 1, nodes.size))
    np.add.at(per_pair, pairs, each)
    evidence = np.log(np.exp(per_pair) @ (weight / weight.sum())).sum()
    prior = ((beta - 1) ** 2).sum() / (2 * 0.75**2) + (gamma**2 + lam**2) / (2 * 2.0**2)
    return float(prior - evidence)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_fit_is_the_maximum_of_the_exact_marginal_likelihood(seed: int) -> None:
    """The fit draws from the posterior of the qualities; here its integral is exact.

    Largest deviations seen: 0.06 on a beta, 0.02 on a bias. A normal approximation of the posterior, in place of the
    draws, misses by 0.73.
    """
    rng = np.random.default_rng(seed)
    rows, pairs = [], []
    for pair in range(250):
        gap = rng.normal(0, 1.5 * np.sqrt(2))
        length = rng.normal(0, 0.5)
        for rater in rng.choice(BETAS.size, 3, replace=False):
            place = rng.choice([-1.0, 1.0])
            logit = BETAS[rater] * gap + 0.5 * place + 0.4 * length
            rows.append((rater, 2 * pair, 2 * pair + 1, float(rng.random() < 1 / (1 + np.exp(-logit))), place, length,
                         1.0))  # fmt: skip
            pairs.append(pair)
    data, of_pair = comparisons_of(rows), np.array(pairs)
    start = np.concatenate([np.ones(BETAS.size), [0.0, 0.0, np.log(1.5)]])
    exact = optimize.minimize(_marginal, start, args=(data, BETAS.size, of_pair), method="L-BFGS-B").x
    ours = fit_rater_model(data, BETAS.size, 500)
    beta = exact[: BETAS.size] / exact[: BETAS.size].mean()
    assert np.abs(ours.beta - beta).max() < 0.15
    assert abs(ours.position_bias - exact[-3]) < 0.08
    assert abs(ours.length_bias - exact[-2]) < 0.08
    assert np.argsort(ours.beta)[0] == 4
