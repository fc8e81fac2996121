"""Places for workers: placement groups, refused at once when they can never be, waited for within a bound."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rlhf.config import PlacementConfig
from rlhf.errors import ConfigError, PlaceLostError, WorkerError
from rlhf.telemetry.console import get_console

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SAY_SECONDS = 5.0
"""How often a wait says what is missing."""
LOST_SECONDS = 15.0
"""How long the cluster may stay without the nodes that a group needs, when no autoscaler adds any."""
ROLLOUT, SCORER, CRITIC = "rollout", "scorer", "critic"
"""Roles with node labels of their own; all others are training ranks."""
Resources = dict[str, float]


@dataclass(frozen=True)
class Ask:
    """What one role asks for: ``size`` workers with ``resources`` each, on nodes with these labels."""

    role: str
    size: int
    resources: Resources
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, role: str, size: int, placement: PlacementConfig, gpus: float) -> Ask:
        """The ask of a group as the config describes it."""
        wanted = {"CPU": placement.cpus_per_worker, "GPU": gpus}
        own_labels = {
            ROLLOUT: placement.rollout_labels,
            SCORER: placement.scorer_labels,
            CRITIC: placement.critic_labels,
        }
        pairs = (label.partition("=") for label in own_labels.get(role, placement.rank_labels))
        return cls(role, size, {k: v for k, v in wanted.items() if v}, {key: value for key, _, value in pairs})


@dataclass(frozen=True)
class Bundle:
    """Resources that lie on one node, and who sits there: (role, index) each."""

    resources: Resources
    labels: dict[str, str]
    sitters: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Node:
    """A node of the cluster as placement sees it."""

    node_id: str
    address: str
    resources: Resources
    labels: dict[str, str] = field(default_factory=dict)


@dataclass
class Reservation:
    """Places that are taken; ``close`` gives them back."""

    groups: list[PlacementGroup]
    places: dict[str, list[tuple[int, int]]]
    """role -> (group, bundle index) in rank order; group -1: anywhere."""

    def seats(self, role: str) -> list[dict[str, Any]]:
        """Actor options of every rank of a role: neighbouring ranks share a node, nodes in the order of addresses."""
        return [
            {
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    placement_group=self.groups[group], placement_group_bundle_index=index
                )
            }
            if group >= 0
            else {}
            for group, index in self.places[role]
        ]

    def lost(self, role: str, ranks: Iterable[int]) -> list[int]:
        """Those of the ranks whose node is gone and that Ray has found no other place for yet."""
        alive = {node.node_id for node in cluster_nodes()}
        nodes = [placement_group_table(group)["bundles_to_node_id"] for group in self.groups]
        places = ((rank, *self.places[role][rank]) for rank in ranks)
        return [rank for rank, group, index in places if group >= 0 and nodes[group].get(index) not in alive]

    def close(self) -> None:
        """Gives the places back; processes that still sit there end."""
        for group in self.groups:
            remove_placement_group(group)
        self.groups = []


@dataclass(frozen=True)
class Beside:
    """Places on given nodes for processes that need no resources of their own, beside whatever sits there."""

    node_ids: tuple[str, ...]

    def seats(self, role: str) -> list[dict[str, Any]]:
        """Actor options, in the order of the nodes."""
        return [{"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in self.node_ids]


def reserve(placement: PlacementConfig, asks: Sequence[Ask], *, again: bool = False) -> Reservation:
    """Takes places for all roles, or for none.

    Waits for: busy resources, and with ``placement.wait_for_nodes`` for new nodes; at most
    ``placement.start_timeout_seconds``. Bundles belong to the calling driver: they are gone when it is.

    Args:
        again: the same places were held before. So the cluster could hold them, and a node that was lost may come back:
            that is waited for, too.

    Raises:
        ConfigError: the cluster can never hold this; the message has a table asked / free / total.
        WorkerError: the places were not free within the bound; the same table. It is ``died`` where nodes were lost.
    """
    may_grow = placement.wait_for_nodes or again
    # a role that asks for nothing may sit anywhere
    places = {ask.role: [(-1, 0)] * ask.size for ask in asks if not ask.resources}
    plans = plan_bundles([ask for ask in asks if ask.resources], placement.layout)
    reason = why_impossible(plans, placement.strategy, cluster_nodes())
    if reason is not None and not may_grow:
        raise ConfigError(f"{reason}\n{resource_table(plans)}\n{_remedy(placement)}")
    groups: list[PlacementGroup] = []
    try:
        for plan in plans:
            groups.append(
                placement_group(
                    [bundle.resources for bundle in plan],
                    strategy=placement.strategy,
                    bundle_label_selector=[b.labels for b in plan] if any(b.labels for b in plan) else None,
                )
            )
        _wait(groups, plans, placement, may_grow=may_grow, lost=again)
        addresses = {node.node_id: node.address for node in cluster_nodes()}
        for number, (group, plan) in enumerate(zip(groups, plans, strict=True)):
            for index in rank_order(placement_group_table(group)["bundles_to_node_id"], addresses):
                for role, _ in plan[index].sitters:
                    places.setdefault(role, []).append((number, index))
    except BaseException:
        Reservation(groups, {}).close()
        raise
    return Reservation(groups, places)


def require_places(reservation: Reservation | Beside | None, role: str, ranks: Iterable[int]) -> None:
    """Refuses to start workers where none could start: Ray would wait for a node in silence.

    Raises:
        PlaceLostError: naming the first rank without a place.
    """
    if isinstance(reservation, Reservation) and (lost := reservation.lost(role, ranks)):
        raise PlaceLostError(role, lost[0], "its node is gone, and no other has room for it yet", "died")


def plan_bundles(asks: Sequence[Ask], layout: str) -> list[list[Bundle]]:
    """One list of bundles per placement group: per role when split, one for all roles when colocated."""
    if layout == "split":
        return [[Bundle(ask.resources, ask.labels, ((ask.role, i),)) for i in range(ask.size)] for ask in asks]
    bundles = []
    for i in range(max((ask.size for ask in asks), default=0)):
        here = [ask for ask in asks if i < ask.size]
        labels = {key: value for ask in here for key, value in ask.labels.items()}
        bundles.append(Bundle(total(ask.resources for ask in here), labels, tuple((ask.role, i) for ask in here)))
    return [bundles] if bundles else []


def why_impossible(plans: Sequence[Sequence[Bundle]], strategy: str, nodes: Sequence[Node]) -> str | None:
    """Why the cluster, even empty, cannot hold the bundles; None when it can, or when only packing could tell."""
    have = total(node.resources for node in nodes)
    asked = total(bundle.resources for plan in plans for bundle in plan)
    for name, amount in asked.items():
        if amount > have.get(name, 0.0):
            return f"the cluster has {have.get(name, 0.0):g} {name}, {amount:g} are asked for"
    for plan in plans:
        role = " and ".join(sorted({role for bundle in plan for role, _ in bundle.sitters}))
        for bundle in plan:
            if not any(fits(bundle, node) for node in nodes):
                return f"no node can hold one {role} worker ({describe(bundle)})"
        if strategy == "STRICT_SPREAD":
            usable = sum(any(fits(bundle, node) for bundle in plan) for node in nodes)
            if usable < len(plan):
                return f"STRICT_SPREAD needs {len(plan)} nodes for the {role} workers, {usable} can hold one"
        if strategy == "STRICT_PACK":
            labels = {key: value for bundle in plan for key, value in bundle.labels.items()}
            whole = Bundle(total(bundle.resources for bundle in plan), labels, ())
            if not any(fits(whole, node) for node in nodes):
                return f"STRICT_PACK needs one node for all {role} workers ({describe(whole)})"
    return None


def fits(bundle: Bundle, node: Node) -> bool:
    """Whether the empty node could hold the bundle."""
    enough = all(amount <= node.resources.get(name, 0.0) for name, amount in bundle.resources.items())
    return enough and all(label_matches(node.labels.get(key), wanted) for key, wanted in bundle.labels.items())


def label_matches(value: str | None, wanted: str) -> bool:
    """Ray's selectors: ``a``, ``!a``, ``in(a,b)``, ``!in(a,b)``."""
    if wanted.startswith("!"):
        return not label_matches(value, wanted[1:])
    if wanted.startswith("in(") and wanted.endswith(")"):
        return value in [part.strip() for part in wanted[3:-1].split(",")]
    return value == wanted


def rank_order(bundle_nodes: Mapping[int, str], addresses: Mapping[str, str]) -> list[int]:
    """Bundle indices in the order in which ranks take them: by node address, then node, then index.

    Neighbouring ranks share a node, and the order is the same whenever the same nodes are given.
    """

    def key(index: int) -> tuple[Any, ...]:
        node = bundle_nodes[index]
        return (*_address_key(addresses.get(node, "")), node, index)

    return sorted(bundle_nodes, key=key)


def resource_table(plans: Sequence[Sequence[Bundle]]) -> str:
    """asked / free / total of every resource that is asked for, and the most that one node has."""
    nodes, free = cluster_nodes(), ray.available_resources()
    asked, have = total(b.resources for plan in plans for b in plan), total(node.resources for node in nodes)
    rows: list[tuple[str, ...]] = [("resource", "asked", "free", "total", "largest node")]
    for name, amount in asked.items():
        largest = max((node.resources.get(name, 0.0) for node in nodes), default=0.0)
        rows.append((name, *(f"{x:g}" for x in (amount, free.get(name, 0.0), have.get(name, 0.0), largest))))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, f"  on {len(nodes)} node(s): {', '.join(sorted(n.address for n in nodes))}"])


def cluster_nodes() -> list[Node]:
    """The nodes that are alive."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], dict(node["Resources"]), dict(node.get("Labels") or {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


def total(amounts: Any) -> Resources:
    """Sums resources by name."""
    summed: Resources = {}
    for resources in amounts:
        for name, amount in resources.items():
            summed[name] = summed.get(name, 0.0) + amount
    return summed


def describe(bundle: Bundle) -> str:
    """``CPU 2, GPU 1 with role=trainer``"""
    amounts = ", ".join(f"{name} {amount:g}" for name, amount in bundle.resources.items())
    labels = ", ".join(f"{key}={value}" for key, value in bundle.labels.items())
    return f"{amounts} with {labels}" if labels else amounts


def _wait(
    groups: Sequence[PlacementGroup],
    plans: Sequence[Sequence[Bundle]],
    placement: PlacementConfig,
    *,
    may_grow: bool,
    lost: bool,
) -> None:
    started = said = possible = time.monotonic()
    for group in groups:
        while True:
            left = placement.start_timeout_seconds - (time.monotonic() - started)
            if group.wait(max(0.01, min(POLL_SECONDS, left))):
                break
            reason = why_impossible(plans, placement.strategy, cluster_nodes())
            missing = reason or _missing(plans)
            now = time.monotonic()
            possible = now if reason is None else possible
            # a node was lost meanwhile: nothing but a new one helps
            hopeless = not may_grow and now - possible > LOST_SECONDS
            if left <= POLL_SECONDS or hopeless:
                bound = f"{now - started:.0f} s" if hopeless else f"{placement.start_timeout_seconds:g} s"
                raise WorkerError(
                    plans[0][0].sitters[0][0],
                    0,
                    f"no place within {bound} (placement.start_timeout_seconds="
                    f"{placement.start_timeout_seconds:g}): {missing}\n{resource_table(plans)}\n{_remedy(placement)}",
                    "died" if lost or hopeless else "error",
                )
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                logger.info("waiting for places: %s", missing)
                get_console().print(f"waiting for places: {missing}", markup=False, soft_wrap=True)


def _missing(plans: Sequence[Sequence[Bundle]]) -> str:
    free = ray.available_resources()
    asked = total(bundle.resources for plan in plans for bundle in plan)
    short = [f"{name}: {amount:g} asked, {free.get(name, 0.0):g} free" for name, amount in asked.items()
             if amount > free.get(name, 0.0)]  # fmt: skip
    return "; ".join(short) or "enough is free, but not on nodes where the strategy allows it"


def _remedy(placement: PlacementConfig) -> str:
    waiting = "" if placement.wait_for_nodes else "; placement.wait_for_nodes=true waits for an autoscaler"
    return (
        "Lower placement.num_ranks, num_rollout_workers, num_scorer_workers, num_critic_ranks, cpus_per_worker or "
        f"gpus_per_rank, change placement.strategy={placement.strategy}, end other jobs, or add nodes{waiting}"
    )


def _address_key(address: str) -> tuple[int, int, str]:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return (9, 0, address)
    return (parsed.version, int(parsed), "")
