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
    makers = (_win_rate, _scores, _rewards, _kl, _sync, _time)
    return [card for card in (make(summary) for make in makers) if card is not None]


def summary_sentence(summary: Summary) -> str:
    """What came out, in words; empty if the summary says nothing that can be put so."""
    parts = []
    win, low, high = (_number(summary, "win_rate", key) for key in ("mean", "ci_low", "ci_high"))
    if win is not None:
        count = _number(summary, "win_rate", "num_prompts")
        on = f" on {count:.0f} held-out prompts" if count else ""
        ours, theirs = compared(summary)
        text = f"The judge prefers {ours}'s answer to {theirs}'s {_percent(win)} of the time{on}"
        if low is not None and high is not None:
            text += f" (95% interval {_percent(low)} to {_percent(high)})"
        parts.append(text + (", which are too few to say." if _too_few(summary) else "."))
    kl, limit = _number(summary, "kl"), _number(summary, "kl_limit")
    if kl is not None and limit is not None:
        where = "under" if kl <= limit else "over"
        parts.append(f"The policy moved {kl:.2f} nats per response away from SFT, {where} its limit of {limit:g}.")
    parts.append(_reward_sentence(summary))
    return " ".join(part for part in parts if part)


def compared(summary: Summary) -> tuple[str, str]:
    """Names of the two sides of a win rate: of ``policy`` and ``baseline``, else PPO and SFT (a quickstart).

    A run is named by its directory's last part, or by all of it where the two would be alike.
    """
    named = [str(summary.get(key) or "") for key in ("policy", "baseline")]
    if not all(named):
        return "PPO", "SFT"
    short = [name.rstrip("/").rpartition("/")[2] or name for name in named]
    ours, theirs = named if short[0] == short[1] else short
    return ours, theirs


REWARDS = {"reward_model": "Reward model accuracy", "implicit_reward": "Accuracy of implicit rewards"}
"""Sections of a summary that tell how well pairs are ordered, and the name of the figure."""


def _section(summary: Summary) -> str:
    return next((name for name in REWARDS if name in summary), "reward_model")


def _reward_sentence(summary: Summary) -> str:
    accuracy, ceiling = vote_figures(summary)
    if accuracy is None or ceiling is None:
        return ""
    who = "The reward model orders" if _section(summary) == "reward_model" else "The policy's implicit rewards order"
    what = "held-out pairs as the annotators did" if _of_votes(summary) else "single held-out votes as they were cast"
    return f"{who} {_percent(accuracy)} of {what}; their own disagreement allows {_percent(ceiling)}."


def _of_votes(summary: Summary) -> bool:
    """Whether the accuracy itself is one over single votes, as a quickstart's is."""
    return _number(summary, _section(summary), "ceiling") is not None


def vote_figures(summary: Summary) -> tuple[float | None, float | None]:
    """(accuracy over single votes, the most that any model could reach on them).

    The ceiling is None where nothing is known of the votes' disagreement: every pair came with one answer.
    """
    section = _section(summary)
    if _of_votes(summary):
        return _number(summary, section, "accuracy"), _number(summary, section, "ceiling")
    ceiling = _number(summary, section, "vote_ceiling")
    return _number(summary, section, "vote_accuracy"), ceiling if ceiling is not None and ceiling < 1 else None


def length_rule(summary: Summary) -> tuple[str, float] | None:
    """(``"longer"`` or ``"shorter"``, accuracy of choosing by length alone), where the summary has it."""
    section = _section(summary)
    found = _number(summary, section, "length_baseline", "accuracy")
    return None if found is None else (str(summary[section]["length_baseline"].get("rule", "longer")), found)


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
    ours, theirs = compared(summary)
    detail = f"{ours} against {theirs}, ties count half"
    tone = ""
    if interval:
        detail = f"95% interval {_percent(interval[0])} to {_percent(interval[1])}. {detail}"
        tone = "good" if interval[0] > 0.5 else "bad" if interval[1] < 0.5 else ""
    if _too_few(summary):
        detail, tone = f"too few prompts to say. {detail}", ""
    return Card("Win rate", _percent(mean), "", detail, Gauge(0, 1, mean, interval, 0.5, "coin toss"), tone)


def _scores(summary: Summary) -> Card | None:
    ours, theirs = compared(summary)
    before, after = (_first(summary, *keys) for keys in (("baseline", "sft"), ("policy", "ppo")))
    if after is None:
        return None
    if before is None:
        return Card("Mean score", f"{after:.2f}", "", ours)
    change = round(after, 2) - round(before, 2)  # of the figures beside it: the reader may subtract them
    return Card("Mean score", f"{before:.2f} → {after:.2f}", "", f"{theirs} → {ours}, a change of {change:+.2f}")


def _first(summary: Summary, *names: str) -> float | None:
    """The mean score of the first of these names that has one."""
    return next((found for name in names if (found := _number(summary, "mean_score", name)) is not None), None)


def _rewards(summary: Summary) -> Card | None:
    section = _section(summary)
    accuracy, low, high = (_number(summary, section, key) for key in ("accuracy", "ci_low", "ci_high"))
    if accuracy is None:
        return None
    interval = (low, high) if low is not None and high is not None else None
    detail = "of held-out pairs ordered as people did"
    if interval is not None:
        detail += f", 95% interval {_percent(interval[0])} to {_percent(interval[1])}"
    votes, ceiling = vote_figures(summary)
    mark, label = None, ""
    if _of_votes(summary) and ceiling is not None:
        detail += f"; agreement allows {_percent(ceiling)}"
        mark, label = ceiling, f"ceiling {_percent(ceiling)}"
    elif votes is not None and ceiling is not None:
        detail += f"; of single votes {_percent(votes)}, where agreement allows {_percent(ceiling)}"
    if (rule := length_rule(summary)) is not None:
        name, share = rule
        detail += f"; choosing the {name} answer gets {_percent(share)}"
        if mark is None:
            mark, label = share, f"{name} {_percent(share)}"
    lowest = min(0.5, accuracy, *(interval or ()), *(() if mark is None else (mark,)))
    return Card(REWARDS[section], _percent(accuracy), "", detail, Gauge(lowest, 1, accuracy, interval, mark, label))


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
    total = _number(summary, "seconds") if total is None else total
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
