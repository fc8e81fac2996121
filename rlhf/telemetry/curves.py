"""Which curves tell the story of a stage, and how they are drawn from its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.telemetry.plots import Series, line_plot

STAGE_NAMES = {
    "sft": "Supervised fine-tuning",
    "samples": "Sampling candidates",
    "rank": "Ranking by annotators",
    "ranking": "Ranking by annotators",
    "preferences": "Ranking by annotators",
    "reward": "Reward model",
    "ppo": "PPO",
    "dpo": "DPO",
    "evaluate": "Evaluation",
    "total": "Total",
}


@dataclass(frozen=True)
class Plot:
    """One picture of the report: an inline SVG and a sentence that says how to read it."""

    svg: str
    caption: str
    folded: bool = False


@dataclass(frozen=True)
class Curve:
    """What one plot shows.

    Attributes:
        title: heading of the plot.
        ylabel: quantity and unit.
        lines: (metric key, name in the legend).
        caption: how to read it.
        limits: metric keys whose last value is a reference line, with its name.
        band: (line key, deviation key): shades one deviation around the line.
        from_zero: the vertical axis holds 0.
        folded: shown only when the reader asks for more.
    """

    title: str
    ylabel: str
    lines: tuple[tuple[str, str], ...]
    caption: str
    limits: tuple[tuple[str, str], ...] = ()
    band: tuple[str, str] | None = None
    from_zero: bool = False
    folded: bool = False


_LOSS = Curve(
    "Loss",
    "nats per token",
    (("loss", "training"), ("eval_loss", "held out")),
    "Should fall and level off; held-out loss that rises again is overfitting.",
)
_REWARD = (
    Curve(
        "Reward model loss",
        "nats per pair",
        (("loss", "training"), ("eval_loss", "held out")),
        "0.69 is a coin toss between two answers; lower is better.",
    ),
    Curve(
        "Reward model accuracy",
        "share of pairs",
        (("accuracy", "training"), ("eval_accuracy", "held out"), ("eval_vote_accuracy", "held out, single votes")),
        "Pairs ordered as most people ordered them. People disagree: no model can pass the ceiling of single votes for "
        "long. What choosing by length alone reaches is no merit of the model.",
        limits=(("ceiling", "ceiling"), ("length_baseline", "by length")),
    ),
)
_DPO = (
    Curve(
        "DPO loss",
        "nats per pair",
        (("loss", "training"), ("eval_loss", "held out")),
        "Starts at 0.69 with the sigmoid loss: policy and reference are equal. Held-out loss that rises again is "
        "overfitting.",
    ),
    Curve(
        "Accuracy of implicit rewards",
        "share of pairs",
        (("accuracy", "training"), ("eval_accuracy", "held out"), ("eval_vote_accuracy", "held out, single votes")),
        "Pairs whose chosen answer has gained more, against the start, than the rejected one. 0.5 is a coin toss; what "
        "choosing by length alone reaches is no merit.",
        limits=(("ceiling", "ceiling"), ("length_baseline", "by length")),
    ),
    Curve(
        "Reward margin",
        "chosen minus rejected",
        (("reward_margin", "training"), ("eval_reward_margin", "held out")),
        "Starts at exactly 0 and grows; training far above held out is overfitting.",
        from_zero=True,
    ),
    Curve(
        "Implicit rewards",
        "beta x log-ratio to the start",
        (("eval_reward_chosen", "chosen"), ("eval_reward_rejected", "rejected")),
        "Held-out answers. Both may fall; where the chosen ones fall as fast, the policy learns what not to say only.",
        folded=True,
    ),
)
_PPO = (
    Curve(
        "Score",
        "reward model score",
        (("score_mean", "mean"),),
        "What PPO climbs: the reward model's score of whole responses. The band is one deviation.",
        band=("score_mean", "score_std"),
    ),
    Curve(
        "Reward",
        "score minus KL penalty",
        (("reward_mean", "mean"),),
        "The score after the price of leaving the SFT policy is paid.",
    ),
    Curve(
        "Distance from SFT",
        "KL, nats per response",
        (("kl", "KL"),),
        "Starts at exactly 0. Far beyond the limit, the policy has learned to please the reward model only.",
        limits=(("kl_limit", "limit"),),
        from_zero=True,
    ),
    Curve(
        "KL penalty",
        "coefficient",
        (("kl_coef", "coefficient"),),
        "The price of one nat of distance; an adaptive controller raises it when KL grows too fast.",
        folded=True,
    ),
    Curve(
        "Entropy",
        "nats per token",
        (("entropy", "policy"),),
        "How undecided the policy is. A slow fall is learning; a collapse to 0 is one answer for everything.",
    ),
    Curve(
        "Response length",
        "tokens",
        (("response_tokens_mean", "mean"),),
        "A steady climb with no gain in quality means that the reward model pays for length.",
    ),
    Curve(
        "Finished responses",
        "share",
        (("eos_rate", "ended by themselves"),),
        "Responses that ended before the token limit cut them.",
        folded=True,
    ),
    Curve(
        "Losses",
        "loss",
        (("policy_loss", "policy"), ("value_loss", "value")),
        "The policy loss stays near 0 by construction; the value loss should fall.",
        folded=True,
    ),
    Curve(
        "Gradient norms",
        "norm before clipping",
        (("grad_norm.policy", "policy"), ("grad_norm.critic", "critic")),
        "Each role's own, clipped at its own limit. A norm that grows without end precedes a run that diverges.",
        from_zero=True,
        folded=True,
    ),
    Curve(
        "Clipped updates",
        "share of tokens",
        (("clip_fraction", "clipped"),),
        "Tokens whose update was cut off. Above 0.3, steps are too large.",
        from_zero=True,
    ),
    Curve(
        "Step size",
        "KL, nats per token",
        (("approx_kl", "old to new policy"),),
        "How far one step moves the policy that sampled the responses.",
        from_zero=True,
        folded=True,
    ),
    Curve(
        "Critic quality",
        "explained variance",
        (("explained_variance", "critic"),),
        "1 predicts every return; 0 is no better than the mean; below 0 misleads.",
    ),
    Curve(
        "Adapter sync error",
        "largest log-prob difference",
        (("sync.max_logprob_diff", "rollout against trainer"),),
        "After each sync both must give the same log-probs; only rounding is left.",
        from_zero=True,
    ),
    Curve(
        "Sync traffic",
        "bytes per sync",
        (("sync.bytes", "adapter"),),
        "Only the adapter travels, never the base model.",
        from_zero=True,
        folded=True,
    ),
    Curve(
        "Sync time",
        "milliseconds",
        (("sync.milliseconds", "publish and take"),),
        "Time to publish the adapter and have every rollout worker take it.",
        from_zero=True,
        folded=True,
    ),
    Curve(
        "Where a step's time goes",
        "seconds",
        (
            ("seconds.act", "act"),
            ("seconds.judge", "judge"),
            ("seconds.learn", "learn"),
            ("seconds.share", "share"),
        ),
        "Act samples, judge scores, learn updates, share publishes the adapter.",
        from_zero=True,
    ),
)
_OTHER = (
    _LOSS,
    Curve(
        "Accuracy",
        "share of pairs",
        (("accuracy", "training"), ("eval_accuracy", "held out")),
        "Pairs ordered as people ordered them.",
    ),
)
CURVES: dict[str, tuple[Curve, ...]] = {"sft": (_LOSS,), "reward": _REWARD, "dpo": _DPO, "ppo": _PPO}

Record = Mapping[str, Any]


def stage_plots(stage: str, records: Sequence[Record], limits: Mapping[str, float] | None = None) -> list[Plot]:
    """Draws every curve of a stage for which there are numbers.

    Args:
        stage: the stage's key; an unknown one gets the curves of loss and accuracy.
        records: the stage's metrics records, in file order.
        limits: reference values by metric key, for those that the records do not hold.
    """
    plots = []
    for curve in CURVES.get(stage, _OTHER):
        lines = [(name, _points(records, key), key) for key, name in curve.lines]
        series = [_series(name, points, key, curve, records) for name, points, key in lines if points]
        if not series:
            continue
        hlines = []
        for key, name in curve.limits:
            value = _last(records, key)
            value = (limits or {}).get(key) if value is None else value
            if value is not None:
                hlines.append((value, f"{name} {value:.3g}"))
        svg = line_plot(series, curve.title, "step", curve.ylabel, hlines, from_zero=curve.from_zero)
        plots.append(Plot(svg, curve.caption, curve.folded))
    return plots


def _points(records: Sequence[Record], key: str) -> dict[int, float | None]:
    """Values by step. A step written twice, by a run that was resumed, counts as written last."""
    found: dict[int, float | None] = {}
    for record in records:
        value = record.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number or (key in record and key in record.get("nonfinite", ())):
            found[int(record.get("step", 0))] = value
    if all(value is None for value in found.values()):
        return {}
    return dict(sorted(found.items()))


def _series(name: str, points: Mapping[int, float | None], key: str, curve: Curve, records: Sequence[Record]) -> Series:
    band = None
    if curve.band and curve.band[0] == key:
        spread = _points(records, curve.band[1])
        if spread:
            pairs = [(value, spread.get(step)) for step, value in points.items()]
            low = [None if v is None or s is None else v - s for v, s in pairs]
            high = [None if v is None or s is None else v + s for v, s in pairs]
            band = (low, high)
    return Series(name, list(points), list(points.values()), band)


def _last(records: Sequence[Record], key: str) -> float | None:
    for record in reversed(records):
        value = record.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None
