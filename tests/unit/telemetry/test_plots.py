from __future__ import annotations

import math
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from rlhf.telemetry.curves import CURVES, stage_plots
from rlhf.telemetry.plots import (
    Series,
    bar_with_interval,
    line_plot,
    reward_kl_curve,
    scatter,
    short_number,
)
from rlhf.telemetry.svg import INK, LIMIT, SERIES_COLORS

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"


def _texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def _every_plot() -> list[str]:
    line = Series("a", [1, 2, 3], [1.0, None, 3.0], band=([0.0, None, 2.0], [2.0, None, 4.0]))
    return [
        line_plot([line], "Line", "step", "loss", [(2.5, "limit")], [(2, "resumed")]),
        bar_with_interval(["x", "y"], [0.5, 0.8], [(0.4, 0.6), None], "Bars", "share", [(0.5, "chance")]),
        scatter({"a": [(0, 0), (1, 2)]}, "Scatter", "x", "y", diagonal=True),
        reward_kl_curve([(0.0, 0.0), (4.0, 2.9)], [(0.0, 0.0), (4.5, 4.3)]),
    ]


@pytest.mark.parametrize("svg", _every_plot(), ids=["line", "bar", "scatter", "reward_kl"])
def test_a_plot_is_well_formed_accessible_and_refers_only_to_itself(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    assert root.get("aria-label") == root[0].text and root[0].tag == f"{SVG}title"
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids)) > 0
    references = [node.get(HREF) for node in root.iter() if node.get(HREF)] + re.findall(r"url\(([^)]*)\)", svg)
    assert references and {reference.lstrip("#") for reference in references} == set(ids)
    assert len(_texts(svg)) > 5  # text is text, not outlines
    assert "<style" not in svg and "DOCTYPE" not in svg and "metadata" not in svg


def test_colours_are_left_to_the_page() -> None:
    svg = line_plot([Series("a", [1, 2], [1, 2]), Series("b", [1, 2], [2, 1])], "T", "x", "y", [(1, "limit")])
    for variable in ("--ink", "--muted", "--grid", "--limit", "--c1", "--c2"):
        assert f"var({variable}," in svg
    for marker in (INK, LIMIT, *SERIES_COLORS):
        assert marker not in svg


def test_the_same_numbers_give_the_same_bytes_and_two_plots_share_no_identifier() -> None:
    first, again = (line_plot([Series("a", [1, 2], [1, 2])], "A", "x", "y") for _ in range(2))
    other = line_plot([Series("a", [1, 2], [1, 2])], "B", "x", "y")
    assert first == again
    assert not set(re.findall(r' id="([^"]+)"', first)) & set(re.findall(r' id="([^"]+)"', other))


def test_text_is_shown_as_it_is() -> None:
    hostile = '<script>alert(1)</script> & $x^2$ "q"'
    line = line_plot([Series(hostile, [1, 2], [1, 2])], hostile, hostile, hostile, [(1, hostile)])
    bars = bar_with_interval([hostile[:20]], [0.5], [None], hostile, hostile)
    assert "<script" not in line + bars
    assert _texts(line).count(hostile) == 5
    assert _texts(bars).count(hostile) == 2 and hostile[:20] in _texts(bars)


def test_the_label_says_what_the_lines_do() -> None:
    svg = line_plot([Series("loss", [1, 2, 3], [2.5, None, 0.5])], "SFT loss", "step", "nats", [(0.4, "floor")])
    assert ElementTree.fromstring(svg).get("aria-label") == "SFT loss: loss goes from 2.5 to 0.5; floor at 0.4"


def test_long_series_are_averaged_and_keep_their_ends() -> None:
    steps = list(range(100_000))
    svg = line_plot([Series("a", steps, [math.sin(step / 20_000) for step in steps])], "T", "x", "y")
    assert len(svg) < 30_000


def test_empty_and_single_points_can_be_drawn() -> None:
    for y in ([math.nan, None], [1.0, math.inf]):
        ElementTree.fromstring(line_plot([Series("a", [1, 2], y)], "T", "x", "y"))
    ElementTree.fromstring(reward_kl_curve({"seed 0": []}, []))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (2e-6, "2e-06"),
        (118784, "119k"),
        (3.4e6, "3.4M"),
        (1500, "1500"),
        (-12, "-12"),
    ],
)
def test_short_number(value: float, text: str) -> None:
    assert short_number(value) == text


def test_no_global_figure_is_used() -> None:
    _every_plot()
    assert "matplotlib.pyplot" not in sys.modules


def test_curves_use_what_is_there_and_a_resumed_step_counts_once() -> None:
    records = [
        {"stage": "ppo", "step": 0, "kl": 0.0, "kl_limit": 10.0},
        {"stage": "ppo", "step": 1, "kl": 1.0, "kl_limit": 10.0},
        {"stage": "ppo", "step": 3, "kl": 7.0, "kl_limit": 10.0},  # written before the run was killed
        {"stage": "ppo", "step": 2, "kl": None, "nonfinite": ["kl"], "kl_limit": 10.0},
        {"stage": "ppo", "step": 3, "kl": 3.0, "kl_limit": 10.0, "entropy": None},
    ]
    (plot,) = stage_plots("ppo", records)
    label = ElementTree.fromstring(plot.svg).get("aria-label")
    assert label == "Distance from SFT: KL goes from 0 to 3; limit 10 at 10"
    assert stage_plots("ppo", [{"stage": "ppo", "step": 1, "other": 1.0}]) == []


def test_limits_may_come_from_the_summary_and_unknown_stages_show_their_loss() -> None:
    (plot,) = stage_plots("reward", [{"step": 1, "accuracy": 0.7}, {"step": 2, "accuracy": 0.8}], {"ceiling": 0.81})
    assert "ceiling 0.81" in _texts(plot.svg)
    (other,) = stage_plots("kto", [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}])
    assert "Loss" in _texts(other.svg)


def test_every_curve_of_every_stage_can_be_drawn() -> None:
    for stage, curves in CURVES.items():
        keys = {key for curve in curves for key, _ in (*curve.lines, *curve.limits)}
        keys |= {curve.band[1] for curve in curves if curve.band}
        records = [{"step": step, **{key: 0.1 * step for key in keys}} for step in range(4)]
        plots = stage_plots(stage, records)
        assert len(plots) == len(curves)
        assert all(plot.caption.endswith(".") for plot in plots)
