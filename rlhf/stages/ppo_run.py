"""What lives through a PPO run, and how it starts, goes on from a checkpoint, and ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.algos.kl import AdaptiveKLController, FixedKLController
from rlhf.config import PpoConfig
from rlhf.data.chat import ChatFormat
from rlhf.data.meta import about
from rlhf.data.order import rows_at
from rlhf.data.schema import PromptRow
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import WeightSyncError
from rlhf.models.policy_source import resolve_policy
from rlhf.models.tokenizer import load_chat
from rlhf.stages.agreement import Agreement
from rlhf.stages.anchor import Anchor, load_anchor
from rlhf.stages.critic_ranks import CriticRanks, critic_identity, critic_origin
from rlhf.stages.drawing import encode_prompts
from rlhf.stages.lengths import check_lengths
from rlhf.stages.passes import require_packing
from rlhf.stages.profiling import Profiler
from rlhf.stages.prompts import read_prompts
from rlhf.stages.restarts import RankRestarts
from rlhf.stages.resume import (
    Resumed,
    StopRequest,
    digest_rows,
    find_commit,
    identity_of,
    open_store,
    require_shared,
    stop_on_signals,
)
from rlhf.stages.reward_models import reward_identity, reward_models_of
from rlhf.stages.run_dir import prepare_run_dir, release_run_dir, rewind_samples
from rlhf.stages.scoring import Scorer, check_sources
from rlhf.stages.share import AdapterChannel, store_bytes
from rlhf.stages.starting_model import with_starting_models
from rlhf.telemetry.events import EventLog
from rlhf.telemetry.metrics import MetricsWriter
from rlhf.telemetry.profile import STEP
from rlhf.telemetry.spans import Recorder
from rlhf.workers.between_hosts import BetweenHosts
from rlhf.workers.fleet import RolloutFleet
from rlhf.workers.group import WorkerGroup
from rlhf.workers.placement import CRITIC, SCORER, Ask, Reservation, reserve
from rlhf.workers.policy_start import RewardModels
from rlhf.workers.runtime import gpus_per_worker, ray_runtime
from rlhf.workers.scorers import Scorers
from rlhf.workers.under_way import Batch

SAMPLES_FILE = "rollouts.jsonl"
KLController = FixedKLController | AdaptiveKLController


@dataclass
class Session:
    """What outlives a rebuilding of the training ranks; ``started``: when this attempt began, by ``perf_counter``."""

    config: PpoConfig
    run_dir: Path
    prompts: list[PromptRow]
    prompt_ids: list[tuple[int, ...]]
    chat: ChatFormat
    pad_id: int
    anchor: Anchor | None
    scorer: Scorer
    reward_models: RewardModels
    metrics: MetricsWriter
    events: EventLog
    store: CheckpointStore
    identity: dict[str, Any]
    resources: dict[str, float]
    stop: StopRequest
    restarts: RankRestarts
    profiler: Profiler
    started: float


@dataclass
class PpoRun:
    """One attempt: ranks, rollout workers, scorer workers and ranks of the critic if there are any, and where it is.

    Attributes:
        critic: ranks of a critic with a base of its own.
        step: steps done.
        ahead: rollouts under way, oldest first: (step, prompt rows, batch).
        next_draw: the first step whose rollouts have not been asked for.
        last: the metrics of the last step done.
    """

    session: Session
    policy: WorkerGroup
    fleet: RolloutFleet
    scorers: Scorers | None
    critic: CriticRanks | None
    channel: AdapterChannel
    kl: KLController
    description: dict[str, Any]
    agreement: Agreement
    step: int = 0
    next_draw: int = 0
    updates_done: int = 0
    seconds_before: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    ahead: deque[tuple[int, list[int], Batch]] = field(default_factory=deque)

    @property
    def config(self) -> PpoConfig:
        """The stage's config."""
        return self.session.config

    @property
    def spans(self) -> Recorder:
        """The driver's spans, for a profile."""
        return self.session.profiler.spans

    @contextmanager
    def profiled(self, step: int) -> Iterator[None]:
        """Around a step; hands it to the profile afterwards, if the run has one."""
        profiler = self.session.profiler
        with self.spans.span(STEP):
            yield
        if profiler.on:
            actors = {"policy": dict(enumerate(self.policy.actors)), "rollout": self.fleet.living}
            actors |= {} if self.scorers is None else {SCORER: self.scorers.actors}
            actors |= {} if self.critic is None else {CRITIC: self.critic.actors}
            costs = profiler.costs or self.policy.call("counted_costs")[0]
            profiler.step_done(step, actors, costs, shared_reward=self.description["shared_reward"])

    @property
    def total_seconds(self) -> float:
        """Wall time of this attempt, reading and starting included, and of those that it continues."""
        return self.seconds_before + time.perf_counter() - self.session.started


def open_session(config: PpoConfig, stack: ExitStack) -> Session:
    """Claims the run directory, reads all input, starts or joins Ray."""
    started = time.perf_counter()
    config = with_starting_models(config)
    run_dir = prepare_run_dir(config)
    stack.callback(release_run_dir, run_dir)
    source = resolve_policy(config.model.name, config.model.revision)
    tokenizer, chat = load_chat(source, config.model)
    check_lengths(config, source)
    prompts = read_prompts(config, run_dir)
    prompt_ids = encode_prompts(prompts, chat, config.rollout.max_prompt_tokens)
    anchor = load_anchor(config, chat, tokenizer.pad_token_id, run_dir)
    check_sources({f"scores[{index}]": score for index, score in enumerate(config.scores)})
    models = reward_models_of(config, source, chat)
    critic = critic_origin(config, source)
    scorer = Scorer(config.scores, config.score)
    stack.callback(scorer.close)
    identity = identity_of(
        config,
        source=source,
        chat=chat,
        data=[
            *((prompt.id, ids) for prompt, ids in zip(prompts, prompt_ids, strict=True)),
            *(("ptx", (*row["input_ids"], *row["labels"])) for row in (anchor.rows if anchor is not None else ())),
        ],
    )
    identity |= critic_identity(config, critic) | reward_identity(config)
    if scorer.reads_meta:
        identity["meta_sha256"] = digest_rows([about(prompt) for prompt in prompts])
    placement = config.placement
    num_workers = placement.num_ranks + placement.num_rollout_workers
    num_workers += placement.num_scorer_workers if models.separate else 0
    num_workers += placement.num_critic_ranks if config.critic_is_apart else 0
    room = store_bytes(config, source)
    resources = stack.enter_context(ray_runtime(placement, num_workers=num_workers, store_bytes=room))
    stop = stack.enter_context(stop_on_signals())  # after Ray, which puts a handler of its own
    metrics = stack.enter_context(
        MetricsWriter(run_dir, tensorboard=config.telemetry.tensorboard, wandb_project=config.telemetry.wandb_project)
    )
    store = open_store(config, run_dir)
    events = EventLog(run_dir)
    ranks = {"policy": placement.num_ranks} | ({CRITIC: placement.num_critic_ranks} if config.critic_is_apart else {})
    restarts = RankRestarts("ppo", ranks, config.recovery.max_restarts, events, run_dir)
    profiler = Profiler(run_dir, on=config.telemetry.profile)
    stack.callback(profiler.write)
    return Session(config, run_dir, prompts, prompt_ids, chat, tokenizer.pad_token_id, anchor, scorer, models,
                   metrics, events, store, identity, resources, stop, restarts, profiler, started)  # fmt: skip


def start(session: Session, stack: ExitStack) -> PpoRun:
    """Starts all workers and publishes the first policy, or the one of the newest checkpoint."""
    config = session.config
    session.store.clean()  # of what a rank that died left of its commit
    resumed = find_commit(config, session.store, session.identity, session.events, session.restarts.count)
    places = reserve_places(session)
    if places is not None:
        stack.callback(places.close)
    policy = _launch_policy(session, places)
    stack.callback(policy.close)
    require_shared(policy, session.run_dir)
    critic = _start_critic(session, places, stack)
    loans = policy.call("lend_base")
    fleet = RolloutFleet(
        _launch_rollout(session, places, loans, config.placement.num_rollout_workers, 0),
        lambda rank: _launch_rollout(session, places, loans, 1, rank),
        config.recovery,
        session.events,
    )
    stack.callback(fleet.close)
    scorers = _start_scorers(session, places)
    if scorers is not None:
        stack.callback(scorers.close)
    description, agreement = _check_pairing(config, policy, fleet, critic, session.chat)
    require_packing(config, description["packs"])
    canary = list(session.prompt_ids[0])
    channel = AdapterChannel(
        policy,
        fleet,
        agreement.sync,
        config.rollout.temperature,
        (canary[:1], canary[1:] or canary[:1]),
        description["snapshot_parts"],
        _between_hosts(session, stack),
    )
    kl: KLController = (
        FixedKLController(config.kl.coef)
        if config.kl.target is None
        else AdaptiveKLController(config.kl.coef, config.kl.target, config.kl.horizon)
    )
    run = PpoRun(session, policy, fleet, scorers, critic, channel, kl, description, agreement)
    if resumed is None:
        channel.publish(must_differ=False)
    else:
        _restore(run, resumed)
    session.metrics.rewind("ppo", run.step - 1)
    rewind_samples(session.run_dir / SAMPLES_FILE, run.step)
    session.restarts.resolved(run.step)
    return run


def _between_hosts(session: Session, stack: ExitStack) -> BetweenHosts | None:
    config = session.config
    if config.policy_weights == "adapter" or config.sync_between_hosts == "store":
        return None
    found = BetweenHosts(config.placement, config.recovery, str(session.run_dir), session.events,
                         config.telemetry.log_level, session.profiler.spans)  # fmt: skip
    stack.callback(found.close)
    return found


def prompt_rows_of(config: PpoConfig, num_prompts: int, step: int) -> list[int]:
    """Prompts of a step: consecutive ones of an endless order that is shuffled anew in every epoch."""
    count = config.batch.prompts_per_step
    return rows_at(config.seed, "prompts", num_prompts, step * count, count)


def _restore(run: PpoRun, resumed: Resumed) -> None:
    manifest = resumed.manifest
    state = manifest.state
    run.policy.call("load_state", str(resumed.path), state["tag"], state["trained"])
    if run.critic is not None:
        run.critic.load_state(resumed.path, state["tag"], state["trained_critic"])
    run.step = run.next_draw = manifest.step
    run.updates_done, run.last = state["updates_done"], state["last"]
    run.seconds_before = state["seconds"]
    run.kl.load_state_dict(state["kl"])
    run.channel.history = list(state["sync_history"])
    run.channel.resume(state["adapter_version"], state["adapter_sha256"])


def reserve_places(session: Session) -> Reservation | None:
    """Places for all roles at once, so that two runs never hold half of what each needs."""
    placement, resources = session.config.placement, session.resources
    rank_gpus = gpus_per_worker(placement.gpus_per_rank, resources)
    asks = [
        Ask.of("policy", placement.num_ranks, placement, rank_gpus),
        Ask.of("rollout", placement.num_rollout_workers, placement, _rollout_gpus(session)),
    ]
    if session.reward_models.separate:
        gpus = gpus_per_worker(placement.gpus_per_scorer_worker, resources)
        asks.append(Ask.of(SCORER, placement.num_scorer_workers, placement, gpus))
    if session.config.critic_is_apart:
        gpus = gpus_per_worker(placement.gpus_per_critic_rank, resources)
        asks.append(Ask.of(CRITIC, placement.num_critic_ranks, placement, gpus))
    return reserve(placement, asks, again=session.restarts.count > 0)


def _rollout_gpus(session: Session) -> float:
    wanted, parts = session.config.placement.gpus_per_rollout_worker, session.config.rollout.tensor_parallel
    return gpus_per_worker(wanted, session.resources, parts)


def _launch_policy(session: Session, places: Reservation | None) -> WorkerGroup:
    config, gpus = session.config, session.config.placement.gpus_per_rank
    worker = ("policy", "rlhf.workers.policy:PolicyWorker")
    return _launch(session, places, *worker, (config,), config.placement.num_ranks, gpus, collective=True)


def _start_critic(session: Session, places: Reservation | None, stack: ExitStack) -> CriticRanks | None:
    config, placement = session.config, session.config.placement
    if not config.critic_is_apart:
        return None
    worker, size, gpus = "rlhf.workers.critic:CriticWorker", placement.num_critic_ranks, placement.gpus_per_critic_rank
    group = _launch(session, places, CRITIC, worker, (config,), size, gpus, collective=True)
    stack.callback(group.close)
    return CriticRanks(group, config, session.run_dir)


def _launch_rollout(
    session: Session, places: Reservation | None, loans: list[Any], size: int, first_rank: int
) -> WorkerGroup:
    config, placement = session.config, session.config.placement
    settings = {
        "microbatch": config.rollout.microbatch_sequences,
        "threads": placement.threads_per_worker,
        "follows_trainer": True,
        "rollout": config.rollout,
        "loans": loans,
    }
    args = (config.model, config.lora if config.policy_weights == "adapter" else None)
    worker, gpus = ("rollout", "rlhf.workers.rollout:RolloutWorker"), _rollout_gpus(session)
    return _launch(session, places, *worker, args, size, gpus, kwargs=settings, first_rank=first_rank)


def _start_scorers(session: Session, places: Reservation | None) -> Scorers | None:
    placement, models = session.config.placement, session.reward_models.separate
    if not models:
        return None
    worker, gpus = (SCORER, "rlhf.workers.scorer:ScorerWorker"), placement.gpus_per_scorer_worker
    args = (tuple(model.run for model in models), placement.threads_per_worker)

    def launch(size: int, first_rank: int) -> WorkerGroup:
        return _launch(session, places, *worker, args, size, gpus, first_rank=first_rank)

    group = launch(placement.num_scorer_workers, 0)
    return Scorers(group, lambda rank: launch(1, rank), models, session.config.recovery, session.events)


def _launch(
    session: Session, places: Reservation | None, role: str, worker: str, args: tuple, size: int, gpus: float | None,
    **options: Any,
) -> WorkerGroup:  # fmt: skip
    group = WorkerGroup.launch(
        worker,
        role,
        size=size,
        placement=session.config.placement,
        run_dir=str(session.run_dir),
        args=args,
        gpus_per_worker=gpus_per_worker(gpus, session.resources),
        reservation=places,
        again=session.restarts.count > 0,
        log_level=session.config.telemetry.log_level,
        **options,
    )
    return session.profiler.watch(group)


def _check_pairing(
    config: PpoConfig, policy: WorkerGroup, fleet: RolloutFleet, critic: CriticRanks | None, chat: ChatFormat
) -> tuple[dict[str, Any], Agreement]:
    trainers, workers = policy.call("describe"), fleet.call("describe").values()
    critics = [] if critic is None else critic.descriptions
    prints = {d["chat_fingerprint"] for d in [*trainers, *workers, *critics]} | {chat.fingerprint()}
    if len(prints) != 1:
        raise WeightSyncError("trainer, rollout workers and driver render text differently: the tokenizers differ")
    return trainers[0], Agreement.of(config, trainers[0], workers)
