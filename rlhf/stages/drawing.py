"""Drawing responses from one or several finished policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rlhf.config import LoraConfig, ModelConfig, PlacementConfig, RecoveryConfig, SamplingConfig, derive_seed
from rlhf.data.chat import ChatFormat
from rlhf.data.schema import PromptRow
from rlhf.errors import DataError
from rlhf.models import adapters
from rlhf.models.policy_source import as_trained, resolve_policy
from rlhf.models.positions import check_positions, sampling_lengths
from rlhf.models.source import ModelSource
from rlhf.models.tokenizer import load_chat
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.telemetry.events import EventLog
from rlhf.workers.fleet import RolloutFleet
from rlhf.workers.group import WorkerGroup
from rlhf.workers.placement import ROLLOUT, Ask, Reservation, reserve
from rlhf.workers.runtime import gpus_per_worker, ray_runtime

WORKER = "rlhf.workers.rollout:RolloutWorker"


@dataclass(frozen=True)
class OpenPolicy:
    """A policy that can be drawn from, and the prompts as it reads them.

    Attributes:
        model: its settings, held as its run held it.
        prompt_ids: token ids per prompt.
    """

    model: ModelConfig
    source: ModelSource
    chat: ChatFormat
    prompt_ids: list[tuple[int, ...]]


@dataclass(frozen=True)
class Drawn:
    """Responses of one policy: ``texts[i][k]`` is the k-th response to prompt i."""

    model: str
    texts: list[list[str]]
    rollouts: list[list[Rollout]]
    seeds: list[list[int]]


def open_policy(
    model: ModelConfig, prompts: Sequence[PromptRow], sampling: SamplingConfig, *, key: str = "model.name"
) -> OpenPolicy:
    """Everything about a policy and its prompts that can be refused without starting a worker.

    Args:
        key: what names the policy, for messages.

    Raises:
        ConfigError: it is no policy, is to be held otherwise than it was trained, or has too few positions.
        CheckpointError: its run is damaged.
        DataError: a prompt does not fit.
    """
    source = resolve_policy(model.name, model.revision, key=key)
    model = as_trained(model, source, key=key.removesuffix(".name"))
    chat = load_chat(source, model)[1]
    check_positions(source, model, sampling_lengths(sampling, "sampling"))
    return OpenPolicy(model, source, chat, encode_prompts(prompts, chat, sampling.max_prompt_tokens))


def draw(
    policies: Sequence[OpenPolicy],
    prompts: Sequence[PromptRow],
    *,
    responses_per_prompt: int,
    sampling: SamplingConfig,
    placement: PlacementConfig,
    recovery: RecoveryConfig,
    microbatch: int,
    seed: int,
    run_dir: str,
    progress: Callable[..., None] | None = None,
) -> list[Drawn]:
    """Draws K responses per prompt from every policy, with seeds that depend on (seed, prompt, sample) only.

    Policies that share a base share its workers, where one can take the other's adapter: only adapters are exchanged.
    A worker that dies or falls silent is replaced, and what it had to draw is drawn again, token for token.

    Raises:
        RolloutFleetExhausted: ``recovery.max_rollout_restarts`` are used up, and no worker is left.
        RlhfError: a worker's own error.
    """
    drawn: dict[int, Drawn] = {}
    total, done = len(policies) * len(prompts) * responses_per_prompt, 0
    models, sources = [policy.model for policy in policies], [policy.source for policy in policies]
    events = EventLog(Path(run_dir))
    with ray_runtime(placement, num_workers=placement.num_rollout_workers) as resources:
        gpus = gpus_per_worker(placement.gpus_per_rollout_worker, resources)
        for indices in _groups(models, sources, [policy.chat for policy in policies]):
            with ExitStack() as stack:
                places = reserve(placement, [Ask.of(ROLLOUT, placement.num_rollout_workers, placement, gpus)])
                stack.callback(places.close)
                shape = models[next((i for i in indices if sources[i].adapter), indices[0])]
                fleet = _start(_Workers(shape, placement, microbatch, run_dir, gpus, places), recovery, events)
                stack.callback(fleet.close)
                for index in indices:
                    fleet.load(sources[index].adapter)
                    drawn[index] = _draw_one(fleet, policies[index], prompts, responses_per_prompt, sampling, seed)
                    done += len(prompts) * responses_per_prompt
                    if progress is not None:
                        progress(done, total, model=models[index].name)
    return [drawn[i] for i in range(len(policies))]


def encode_prompts(prompts: Sequence[PromptRow], chat: ChatFormat, max_prompt_tokens: int) -> list[tuple[int, ...]]:
    """Renders prompts; a prompt over the limit is an error, because cutting it changes what is asked."""
    encoded = [tuple(chat.encode_prompt(row.messages)) for row in prompts]
    for row, ids in zip(prompts, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            raise DataError(
                f"prompt {row.id!r} has {len(ids)} tokens, the limit is max_prompt_tokens={max_prompt_tokens}: "
                "raise the limit or remove the prompt"
            )
    return encoded


def _groups(
    models: Sequence[ModelConfig], sources: Sequence[ModelSource], chats: Sequence[ChatFormat]
) -> list[list[int]]:
    """Places of models that share workers; a bare base is drawn from by workers that switch an adapter off."""
    keys = [_keys(*each) for each in zip(models, sources, chats, strict=True)]
    adapted = [key for key in keys if key[1] is not None]
    found: dict[tuple[str, str | None], list[int]] = {}
    for index, (base, shape) in enumerate(keys):
        like = (base, shape) if shape is not None else next((key for key in adapted if key[0] == base), (base, None))
        found.setdefault(like, []).append(index)
    return list(found.values())


def _keys(model: ModelConfig, source: ModelSource, chat: ChatFormat) -> tuple[str, str | None]:
    """What workers hold, and all that an adapter's weights do not say of it; None without one."""
    settings = model.model_dump(mode="json", exclude={"name", "chat_style"})
    base = json.dumps([source.base, source.revision, settings, chat.fingerprint()])
    if source.adapter is None:
        return base, None
    shape = adapters.read_peft_config(source.adapter).to_dict()
    shape.pop("base_model_name_or_path")  # the same base may have been named by another path
    return base, json.dumps(shape, sort_keys=True, default=sorted)  # of sets, whose order says nothing


@dataclass(frozen=True)
class _Workers:
    """What every worker of a fleet is started with, the first ones and those that replace them."""

    model: ModelConfig
    placement: PlacementConfig
    microbatch: int
    run_dir: str
    gpus: float
    places: Reservation

    def launch(self, size: int, first_rank: int) -> WorkerGroup:
        lora: LoraConfig | None = None
        threads = self.placement.threads_per_worker
        return WorkerGroup.launch(
            WORKER,
            ROLLOUT,
            size=size,
            placement=self.placement,
            run_dir=self.run_dir,
            args=(self.model, lora),
            kwargs={"microbatch": self.microbatch, "threads": threads, "follows_trainer": False},
            gpus_per_worker=self.gpus,
            first_rank=first_rank,
            reservation=self.places,
        )


def _start(workers: _Workers, recovery: RecoveryConfig, events: EventLog) -> RolloutFleet:
    group = workers.launch(workers.placement.num_rollout_workers, 0)
    return RolloutFleet(group, lambda rank: workers.launch(1, rank), recovery, events)


def _draw_one(
    fleet: RolloutFleet,
    policy: OpenPolicy,
    prompts: Sequence[PromptRow],
    responses_per_prompt: int,
    sampling: SamplingConfig,
    seed: int,
) -> Drawn:
    seeds = [[derive_seed(seed, "draw", row.id, k) for k in range(responses_per_prompt)] for row in prompts]
    tasks = [
        PromptTask(f"{row.id}/{k}", ids, seeds[i][k])
        for i, (row, ids) in enumerate(zip(prompts, policy.prompt_ids, strict=True))
        for k in range(responses_per_prompt)
    ]
    found = fleet.collect(fleet.submit(tasks, sampling, version=0))
    rows = [found[i : i + responses_per_prompt] for i in range(0, len(found), responses_per_prompt)]
    texts = [[policy.chat.decode_response(list(r.response_ids)) for r in row] for row in rows]
    return Drawn(policy.model.name, texts, rows, seeds)
