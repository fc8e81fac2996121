"""Rollouts become padded tensors and back without a slot off."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.rollout.experience import Experience, collect
from rlhf.rollout.protocol import Rollout

PAD = 2
token_lists = st.lists(st.integers(3, 99), min_size=1, max_size=6)


def rollout(index: int, prompt: list[int], response: list[int]) -> Rollout:
    logprobs = tuple(-0.1 * (index + 1) - 0.01 * t for t in range(len(response)))
    return Rollout(f"r{index}", tuple(prompt), tuple(response), logprobs, index % 2 == 0, 0, "x")


def rows_of(batch: Experience) -> list[tuple[list[int], list[int], list[float]]]:
    """(sequence, response, log-probs) of every row, read through the masks alone."""
    return [
        (
            batch.input_ids[i][batch.attention_mask[i]].tolist(),
            batch.response_ids[i][batch.response_mask[i]].tolist(),
            batch.behaviour_logprobs[i][batch.response_mask[i]].tolist(),
        )
        for i in range(batch.num_sequences)
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=6), st.data())
def test_collect_and_select_keep_every_token(pairs: list[tuple[list[int], list[int]]], data: st.DataObject) -> None:
    rollouts = [rollout(i, *pair) for i, pair in enumerate(pairs)]
    batch = collect(rollouts, PAD)
    whole = rows_of(batch)
    for (sequence, response, logprobs), source in zip(whole, rollouts, strict=True):
        assert sequence == [*source.prompt_ids, *source.response_ids] and response == list(source.response_ids)
        assert torch.allclose(torch.tensor(logprobs), torch.tensor(source.logprobs))
    assert batch.lengths == [len(a) + len(b) for a, b in pairs]
    assert (batch.input_ids[~batch.attention_mask] == PAD).all()

    chosen = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=6))
    part = batch.with_judgement(advantages=batch.behaviour_logprobs * 2).select(chosen)
    assert rows_of(part) == [whole[i] for i in chosen]
    assert part.response_ids.shape[1] == max(len(pairs[i][1]) for i in chosen)
    assert part.input_ids.shape[1] == part.response_ids.shape[1] + max(len(pairs[i][0]) for i in chosen)
    assert torch.equal(part.input_ids[:, -part.response_ids.shape[1] :], part.response_ids)
    assert part.advantages is not None and torch.equal(part.advantages, part.behaviour_logprobs * 2)
    assert part.finished.tolist() == [i % 2 == 0 for i in chosen]
    assert part.values is None
