"""The functions together: PPO on a table of logits finds a planted reward, and stays put without one."""

import pytest
import torch

from rlhf.algos.advantages import gae, whiten_advantages
from rlhf.algos.kl import sequence_kl
from rlhf.algos.logprobs import entropy, token_logprobs
from rlhf.algos.losses import clipped_value_loss, ppo_policy_loss
from rlhf.algos.masks import ends_with_eos, masked_sum, response_mask_from_tokens
from rlhf.algos.minibatch import plan_minibatches
from rlhf.algos.rewards import missing_eos_replace, penalised_rewards

VOCABULARY, LENGTH, BATCH, EOS, WANTED, PAD = 8, 6, 64, 7, 3, 0
TEMPERATURE = 0.7


def sample(logits, generator):
    """(batch, LENGTH) tokens; the table has one row of logits per slot, the pad token cannot be drawn."""
    blocked = (logits / TEMPERATURE).index_fill(-1, torch.tensor([PAD]), -torch.inf)
    tokens = torch.multinomial(blocked.softmax(-1), BATCH, replacement=True, generator=generator).T
    mask = response_mask_from_tokens(tokens, [EOS])
    return tokens.masked_fill(~mask, PAD), mask


def logprobs_of(logits, tokens):
    batch_logits = logits.expand(tokens.shape[0], LENGTH, VOCABULARY)
    return token_logprobs(batch_logits, tokens, temperature=TEMPERATURE, suppress_ids=(PAD,))


def train(seed, score, steps, kl_coef):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(LENGTH, VOCABULARY, requires_grad=True)
    reference = logits.detach().clone()
    table = torch.zeros(LENGTH, requires_grad=True)
    optimizer = torch.optim.Adam([logits, table], lr=0.03, eps=1e-5)
    history = []
    for step in range(steps):
        tokens, mask = sample(logits.detach(), generator)
        with torch.no_grad():
            old, ref = logprobs_of(logits, tokens), logprobs_of(reference, tokens)
            old_values = table.detach().expand(BATCH, LENGTH)
        scores = score(tokens, mask)
        rewards = penalised_rewards(scores, old, ref, mask, kl_coef=kl_coef)
        estimate = gae(rewards, old_values, mask, gamma=1.0, lam=0.95)
        advantages = whiten_advantages(estimate.advantages, mask)
        plan = plan_minibatches(BATCH, minibatch_sequences=32, num_ranks=2, microbatch_sequences=8, epochs=2, seed=step)
        first_deviation = None
        for minibatch in (m for epoch in plan for m in epoch):
            optimizer.zero_grad()
            count = mask[list(minibatch.rows)].sum()
            for rows in (list(rows) for microbatches in minibatch.ranks for rows in microbatches):
                policy = ppo_policy_loss(
                    logprobs_of(logits, tokens[rows]),
                    old[rows],
                    advantages[rows],
                    mask[rows],
                    clip_low=0.2,
                    clip_high=0.2,
                    denominator=count,
                )
                values = table.expand(len(rows), LENGTH)
                critic = clipped_value_loss(
                    values, old_values[rows], estimate.returns[rows], mask[rows], clip=0.2, denominator=count
                )
                (policy.loss + critic.loss).backward()
                if first_deviation is None:
                    first_deviation = policy.ratio_deviation_max.item()
            optimizer.step()
        assert first_deviation < 1e-4
        history.append((scores.mean().item(), sequence_kl(old, ref, mask).mean().item()))
    uncertainty = entropy(logits.detach(), temperature=TEMPERATURE, suppress_ids=(PAD,))
    assert torch.isfinite(uncertainty).all()
    return history


def count_wanted(tokens, mask):
    counted = masked_sum((tokens == WANTED).float(), mask, dim=1)
    # Long answers are welcome here, so that running into the limit costs nothing.
    return missing_eos_replace(counted, ends_with_eos(tokens, mask, [EOS]) | mask.all(dim=1), value=-1.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_planted_reward_rises(seed):
    history = train(seed, count_wanted, steps=48, kl_coef=0.01)
    quarters = [sum(score for score, _ in history[i : i + 12]) / 12 for i in range(0, 48, 12)]
    assert quarters == sorted(quarters)
    assert history[0][0] < 1.0 and quarters[-1] > 4.5
    assert history[0][1] == 0.0  # the policy still is the reference
    assert history[-1][1] > 1.0


def test_without_a_reward_the_policy_stays_the_reference():
    history = train(0, lambda tokens, mask: torch.zeros(BATCH), steps=12, kl_coef=0.2)
    assert max(abs(kl) for _, kl in history) < 1e-6


def test_the_kl_penalty_holds_the_policy_near_the_reference_under_noise():
    def drift(kl_coef):
        noise = torch.Generator().manual_seed(100)
        history = train(0, lambda tokens, mask: torch.randn(BATCH, generator=noise), steps=24, kl_coef=kl_coef)
        return sum(kl for _, kl in history[-8:]) / 8

    held, free = drift(0.2), drift(0.0)
    assert 0 < held < 0.4  # the planted reward of the same number of steps takes it beyond 5
    assert held < 0.75 * free
