import json

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from rlhf.algos.moments import RunningMoments, masked_moments

from .support import given, masks, normal, seeds

batches = st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=0, max_size=6), min_size=1, max_size=5).filter(
    lambda parts: any(parts)
)


@given(masks(), seeds)
def test_moments_of_the_kept_numbers(mask, seed):
    x = normal(seed, *mask.shape) * 3 + 2
    kept = x.numpy()[mask.numpy()]
    moments = masked_moments(x.masked_fill(~mask, float("nan")), mask)
    assert moments.count.item() == kept.size
    assert moments.mean.item() == pytest.approx(kept.mean() if kept.size else 0.0, abs=1e-12)
    assert moments.variance.item() == pytest.approx(kept.var() if kept.size else 0.0, abs=1e-11)
    assert moments.m2.dtype == torch.float64


@given(batches)
def test_merging_parts_gives_the_moments_of_the_whole(parts):
    whole = np.array([x for part in parts for x in part])
    moments = None
    for part in parts:
        x = torch.tensor(part, dtype=torch.float64)
        new = masked_moments(x, torch.ones_like(x, dtype=torch.bool))
        moments = new if moments is None else moments.merge(new)
    assert moments.count.item() == whole.size
    assert moments.mean.item() == pytest.approx(whole.mean(), abs=1e-9)
    assert moments.m2.item() == pytest.approx(((whole - whole.mean()) ** 2).sum(), rel=1e-9, abs=1e-6)


@given(batches)
def test_running_moments_over_batches_and_ranks(parts):
    whole = np.array([x for part in parts for x in part])
    one, ranks = RunningMoments(), [RunningMoments(), RunningMoments()]
    for i, part in enumerate(parts):
        one.update(torch.tensor(part, dtype=torch.float32))
        ranks[i % 2].update(torch.tensor(part, dtype=torch.float32))
    ranks[0].merge(ranks[1])
    for running in (one, ranks[0]):
        assert running.count.item() == whole.size
        assert running.mean.item() == pytest.approx(whole.mean(), abs=1e-9)
        assert running.std.item() == pytest.approx(whole.std(), rel=1e-6, abs=1e-4)


def test_normalise_brings_what_was_seen_to_zero_mean_and_unit_variance():
    running = RunningMoments()
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0])
    running.update(scores[:1])
    running.update(scores[1:].reshape(1, 3))
    normalised = running.normalise(scores)
    assert normalised.dtype == torch.float32
    # mean 3, biased variance (4 + 1 + 0 + 9) / 4
    assert normalised.tolist() == pytest.approx([-1.069045, -0.534522, 0.0, 1.603567], abs=1e-6)


def test_equal_scores_are_only_centred():
    running = RunningMoments()
    running.update(torch.tensor([2.5, 2.5]))
    assert running.normalise(torch.tensor([2.5, 4.0])).tolist() == [0.0, 1.5]


def test_normalise_before_update_is_refused():
    with pytest.raises(ValueError, match="update"):
        RunningMoments().normalise(torch.ones(1))


def test_state_survives_json_exactly_and_scores_keep_no_graph():
    running = RunningMoments()
    scores = torch.randn(7, requires_grad=True)
    running.update(scores)
    assert not running.mean.requires_grad
    loaded = RunningMoments()
    loaded.load_state_dict(json.loads(json.dumps(running.state_dict())))
    assert loaded.std.item() == pytest.approx(scores.detach().double().std(correction=0).item(), abs=1e-12)
    more = torch.randn(5)
    for r in (running, loaded):
        r.update(more)
    assert loaded.state_dict() == running.state_dict()
    assert loaded.count.item() == 12
