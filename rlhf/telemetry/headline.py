"""The figures at the head of a report and the sentence that puts them in words, from a run's summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf.telemetry.progress import format_seconds


@dataclass(frozen=True)
class Gauge:
    """A value on a scale from `low` to `high`, with an optional interval and a marked reference."""

    low: float
    high: float
    value: float
    interval: tuple[float, float] | None = None
    mark: float | None = None
    mark_label: str = ""


@dataclass(frozen=True)
class Card:
    """One headline figure; `tone` is ``"good"``, ``"bad"`` or empty."""

    label: str
    value: str
    unit: str = ""
    detail: str = ""
    gauge: Gauge | None = None
    tone: str = ""


Summary = Mapping[str, Any]


def headline_cards(summary: Summary) -> list[Card]:
    """The cards for which the summary holds the numbers."""
    makers = (_win_rate, _scores, _reward_model, _kl, _sync, _time)
    return [card for card in (make(summary) for make in makers) if card is not None]


def summary_sentence(summary: Summary) -> str:
    """What came out, in words; empty if the summary says nothing that can be put so."""
    parts = []
    win, low, high = (_number(summary, "win_rate", key) for key in ("mean", "ci_low", "ci_high"))
    if win is not None:
        count = _number(summary, "win_rate", "num_prompts")
        on = f" on {count:.0f} held-out prompts" if count else ""
        text = f"The judge prefers PPO's answer to SFT's {_percent(win)} of the time{on}"
        if low is not None and high is not None:
            text += f" (95% interval {_percent(low)} to {_percent(high)})"
        parts.append(text + (", which are too few to say." if _too_few(summary) else "."))
    kl, limit = _number(summary, "kl"), _number(summary, "kl_limit")
    if kl is not None and limit is not None:
        where = "under" if kl <= limit else "over"
        parts.append(f"The policy moved {kl:.2f} nats per response away from SFT, {where} its limit of {limit:g}.")
    accuracy, ceiling = (
        _number(summary, "reward_model", "accuracy"),
        _number(summary, "reward_model", "ceiling"),
    )
    if accuracy is not None and ceiling is not None:
        parts.append(
            f"The reward model orders {_percent(accuracy)} of held-out pairs as the annotators did; "
            f"their own disagreement allows {_percent(ceiling)}."
        )
    return " ".join(parts)


def _number(summary: Summary, *path: str) -> float | None:
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _percent(share: float) -> str:
    """Rounded as the console's two decimals are: 0.925 is 0.93 there and 93% here."""
    return f"{100 * float(f'{share:.2f}'):.0f}%"


def _too_few(summary: Summary) -> bool:
    """Whether the evaluation had too few prompts to say anything."""
    win = summary.get("win_rate")
    return isinstance(win, Mapping) and win.get("too_few") is True


def _win_rate(summary: Summary) -> Card | None:
    mean, low, high = (_number(summary, "win_rate", key) for key in ("mean", "ci_low", "ci_high"))
    if mean is None:
        return None
    interval = (low, high) if low is not None and high is not None else None
    detail = "PPO against SFT, ties count half"
    tone = ""
    if interval:
        detail = f"95% interval {_percent(interval[0])} to {_percent(interval[1])}. {detail}"
        tone = "good" if interval[0] > 0.5 else "bad" if interval[1] < 0.5 else ""
    if _too_few(summary):
        detail, tone = f"too few prompts to say. {detail}", ""
    return Card("Win rate", _percent(mean), "", detail, Gauge(0, 1, mean, interval, 0.5, "coin toss"), tone)


def _scores(summary: Summary) -> Card | None:
    before, after = _number(summary, "mean_score", "sft"), _number(summary, "mean_score", "ppo")
    if after is None:
        return None
    if before is None:
        return Card("Mean score", f"{after:.2f}", "", "PPO")
    change = round(after, 2) - round(before, 2)  # of the figures beside it: the reader may subtract them
    return Card("Mean score", f"{before:.2f} → {after:.2f}", "", f"SFT → PPO, a change of {change:+.2f}")


def _reward_model(summary: Summary) -> Card | None:
    accuracy, ceiling = (
        _number(summary, "reward_model", "accuracy"),
        _number(summary, "reward_model", "ceiling"),
    )
    if accuracy is None:
        return None
    detail, gauge = "of held-out pairs ordered as people did", Gauge(0.5, 1, accuracy)
    if ceiling is not None:
        detail += f"; agreement allows {_percent(ceiling)}"
        gauge = Gauge(0.5, 1, accuracy, None, ceiling, f"ceiling {_percent(ceiling)}")
    return Card("Reward model accuracy", _percent(accuracy), "", detail, gauge)


def _kl(summary: Summary) -> Card | None:
    kl, limit = _number(summary, "kl"), _number(summary, "kl_limit")
    if kl is None:
        return None
    if limit is None:
        return Card("Distance from SFT", f"{kl:.2f}", "nats", "KL per response")
    gauge = Gauge(0, max(limit * 1.15, kl * 1.05), kl, None, limit, f"limit {limit:g}")
    return Card("Distance from SFT", f"{kl:.2f}", "nats", "KL per response", gauge, "bad" if kl > limit else "")


def _sync(summary: Summary) -> Card | None:
    diff = _number(summary, "sync", "max_logprob_diff")
    if diff is None:
        return None
    size, spent = _number(summary, "sync", "bytes"), _number(summary, "sync", "milliseconds")
    details = ["largest log-prob difference, rollout against trainer"]
    if size is not None:
        details.append(f"{format_bytes(size)} per sync")
    if spent is not None:
        details.append(f"{spent:.0f} ms")
    return Card("Sync error", f"{diff:.1e}" if diff else "0", "", "; ".join(details))


def _time(summary: Summary) -> Card | None:
    total = _number(summary, "seconds", "total")
    if total is None:
        return None
    details = []
    ranks, peak = _number(summary, "num_ranks"), _number(summary, "peak_rss_mib")
    if ranks is not None:
        details.append(f"{ranks:.0f} DeepSpeed rank{'' if ranks == 1 else 's'}")
    if peak is not None:
        details.append(f"peak memory {peak / 1024:.1f} GiB")
    return Card("Time", format_seconds(total), "", ", ".join(details))


def format_bytes(size: float) -> str:
    """``640 B``, ``118 KiB``, ``2.4 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
