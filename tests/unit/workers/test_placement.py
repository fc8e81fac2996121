"""Places on paper: bundles, what can never be, and the order of ranks. No cluster is needed."""

from __future__ import annotations

import pytest

from rlhf.config import PlacementConfig, build_config
from rlhf.errors import ConfigError
from rlhf.workers.placement import Ask, Bundle, Node, fits, label_matches, plan_bundles, rank_order, why_impossible

RANKS = Ask("policy", 2, {"CPU": 1.0, "GPU": 0.5}, {"kind": "big"})
ROLLOUTS = Ask("rollout", 3, {"CPU": 2.0, "GPU": 0.5})


def node(name: str, labels: dict[str, str] | None = None, **resources: float) -> Node:
    return Node(name, f"10.0.0.{name}", resources, labels or {})


def workers(count: int, **resources: float) -> list[list[Bundle]]:
    return plan_bundles([Ask("policy", count, resources)], "split")


def test_split_roles_have_groups_of_their_own() -> None:
    ranks, rollouts = plan_bundles([RANKS, ROLLOUTS], "split")
    assert [bundle.sitters for bundle in ranks] == [(("policy", 0),), (("policy", 1),)]
    assert [bundle.resources for bundle in rollouts] == [{"CPU": 2.0, "GPU": 0.5}] * 3
    assert ranks[0].labels == {"kind": "big"} and rollouts[0].labels == {}


def test_colocated_workers_share_a_bundle() -> None:
    (bundles,) = plan_bundles([RANKS, ROLLOUTS], "colocated")
    assert [bundle.sitters for bundle in bundles] == [
        (("policy", 0), ("rollout", 0)), (("policy", 1), ("rollout", 1)), (("rollout", 2),),
    ]  # fmt: skip
    assert bundles[0].resources == {"CPU": 3.0, "GPU": 1.0} and bundles[2].resources == {"CPU": 2.0, "GPU": 0.5}
    assert bundles[0].labels == {"kind": "big"} and bundles[2].labels == {}


@pytest.mark.parametrize(
    ("plans", "strategy", "nodes", "reason"),
    [
        (workers(2, CPU=1), "PACK", [node("1", CPU=2)], None),
        (workers(1, CPU=99), "PACK", [node("1", CPU=2), node("2", CPU=2)], "4 CPU, 99 are asked for"),
        (workers(1, GPU=1), "PACK", [node("1", CPU=2)], "0 GPU, 1 are asked for"),
        (workers(1, CPU=3), "PACK", [node("1", CPU=2), node("2", CPU=2)], "no node can hold one policy worker (CPU 3)"),
        (workers(2, CPU=1), "STRICT_SPREAD", [node("1", CPU=9)], "STRICT_SPREAD needs 2 nodes for the policy workers"),
        (workers(2, CPU=1), "STRICT_SPREAD", [node("1", CPU=1), node("2", CPU=1)], None),
        (workers(2, CPU=1), "STRICT_PACK", [node("1", CPU=1), node("2", CPU=1)], "STRICT_PACK needs one node"),
        (workers(2, CPU=1), "STRICT_PACK", [node("1", CPU=2), node("2", CPU=1)], None),
        (plan_bundles([RANKS], "split"), "PACK", [node("1", CPU=9, GPU=9)], "with kind=big"),
        (plan_bundles([RANKS], "split"), "PACK", [node("1", {"kind": "big"}, CPU=9, GPU=9)], None),
    ],
)
def test_what_can_never_be(plans: list[list[Bundle]], strategy: str, nodes: list[Node], reason: str | None) -> None:
    found = why_impossible(plans, strategy, nodes)
    assert (found is None) if reason is None else (found is not None and reason in found), found


def test_all_roles_count_together() -> None:
    plans = plan_bundles([Ask("policy", 2, {"CPU": 1.0}), Ask("rollout", 2, {"CPU": 1.0})], "split")
    assert why_impossible(plans, "PACK", [node("1", CPU=3)]) == "the cluster has 3 CPU, 4 are asked for"
    assert why_impossible(plans, "STRICT_SPREAD", [node("1", CPU=2), node("2", CPU=2)]) is None


def test_ranks_follow_node_addresses() -> None:
    addresses = {"a": "10.0.0.10", "b": "10.0.0.9", "c": "fd00::1"}
    assert rank_order({0: "a", 1: "c", 2: "b", 3: "a", 4: "b"}, addresses) == [2, 4, 0, 3, 1]


@pytest.mark.parametrize(
    ("value", "wanted", "matches"),
    [("a", "a", True), ("a", "b", False), (None, "a", False), ("a", "!b", True), (None, "!b", True), ("a", "!a", False),
     ("a", "in(a, b)", True), ("c", "in(a,b)", False), ("c", "!in(a,b)", True)],
)  # fmt: skip
def test_label_selectors(value: str | None, wanted: str, matches: bool) -> None:
    assert label_matches(value, wanted) is matches
    bundle = Bundle({"CPU": 1}, {"k": wanted}, ())
    assert fits(bundle, node("1", {"k": value} if value else {}, CPU=1)) is matches


def test_asks_come_from_the_config() -> None:
    placement = PlacementConfig(
        cpus_per_worker=2, rank_labels=("role=trainer",), rollout_labels=("gpu=in(a,b)",), scorer_labels=("gpu=old",)
    )
    rank = Ask.of("policy", 4, placement, 1.0)
    assert (rank.resources, rank.labels) == ({"CPU": 2.0, "GPU": 1.0}, {"role": "trainer"})
    assert Ask.of("rollout", 1, placement, 0.0).labels == {"gpu": "in(a,b)"}
    assert Ask.of("rollout", 1, placement, 0.0).resources == {"CPU": 2.0}


def test_scorer_workers_have_places_like_any_role() -> None:
    placement = PlacementConfig(scorer_labels=("gpu=old",))
    scorers = Ask.of("scorer", 2, placement, 0.5)
    assert scorers.labels == {"gpu": "old"} and scorers.resources == {"CPU": 1.0, "GPU": 0.5}
    plans = plan_bundles([RANKS, scorers], "split")
    assert [bundle.sitters for bundle in plans[1]] == [(("scorer", 0),), (("scorer", 1),)]
    few = [node("1", {"kind": "big"}, CPU=9, GPU=9), node("2", {"kind": "big"}, CPU=9, GPU=9)]
    reason = why_impossible(
        plan_bundles([scorers], "split"), "STRICT_SPREAD", [*few, node("3", {"gpu": "old"}, CPU=9, GPU=9)]
    )
    assert reason == "STRICT_SPREAD needs 2 nodes for the scorer workers, 1 can hold one"
    (together,) = plan_bundles([RANKS, Ask("scorer", 1, {"GPU": 0.25})], "colocated")
    assert together[0].sitters == (("policy", 0), ("scorer", 0)) and together[0].resources["GPU"] == 0.75


def test_ranks_of_a_critic_on_a_base_of_its_own_have_places_like_any_role() -> None:
    placement = PlacementConfig(critic_labels=("gpu=big",), rank_labels=("gpu=small",))
    critics = Ask.of("critic", 2, placement, 1.0)
    assert critics.labels == {"gpu": "big"} and critics.resources == {"CPU": 1.0, "GPU": 1.0}
    (together,) = plan_bundles([RANKS, Ask("critic", 1, {"GPU": 0.25})], "colocated")
    assert together[0].sitters == (("policy", 0), ("critic", 0))


def test_config_rules() -> None:
    with pytest.raises(ConfigError, match="must look like key=value"):
        build_config(PlacementConfig, {"rank_labels": ("H100",)}, source="t")
    with pytest.raises(ConfigError, match="layout=colocated"):
        build_config(PlacementConfig, {"layout": "colocated", "gpus_per_rank": 0.5}, source="t")
