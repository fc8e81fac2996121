"""Drawing responses from one or several finished policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

from rlhf.config import LoraConfig, ModelConfig, PlacementConfig, SamplingConfig, derive_seed
from rlhf.data.chat import ChatFormat
from rlhf.data.schema import PromptRow
from rlhf.errors import DataError
from rlhf.models import adapters
from rlhf.models.positions import check_positions, sampling_lengths
from rlhf.models.source import ModelSource, resolve_model
from rlhf.models.tokenizer import load_chat
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.workers.group import WorkerGroup
from rlhf.workers.runtime import gpus_per_worker, ray_runtime


@dataclass(frozen=True)
class Drawn:
    """Responses of one policy: ``texts[i][k]`` is the k-th response to prompt i."""

    model: str
    texts: list[list[str]]
    rollouts: list[list[Rollout]]
    seeds: list[list[int]]


def draw(
    models: Sequence[ModelConfig],
    prompts: Sequence[PromptRow],
    *,
    responses_per_prompt: int,
    sampling: SamplingConfig,
    placement: PlacementConfig,
    microbatch: int,
    seed: int,
    run_dir: str,
    progress: Callable[..., None] | None = None,
) -> list[Drawn]:
    """Draws K responses per prompt from every model, with seeds that depend on (seed, prompt, sample) only.

    Models that share a base share its workers, where one can take the other's adapter: only adapters are exchanged.
    """
    resolved = [resolve_model(m.name, m.revision) for m in models]
    chats = [load_chat(source, model)[1] for model, source in zip(models, resolved, strict=True)]
    for model, source in zip(models, resolved, strict=True):
        check_positions(source, model, sampling_lengths(sampling, "sampling"))
    drawn: dict[int, Drawn] = {}
    total, done = len(models) * len(prompts) * responses_per_prompt, 0
    with ray_runtime(placement, num_workers=placement.num_rollout_workers) as resources:
        for indices in _groups(models, resolved, chats):
            with ExitStack() as stack:
                shape = next((i for i in indices if resolved[i].adapter), indices[0])
                group = _launch(models[shape], placement, microbatch, run_dir, resources)
                stack.callback(group.close)
                for index in indices:
                    adapter = resolved[index].adapter
                    group.call("load", str(adapter) if adapter else None)
                    drawn[index] = _draw_one(
                        group, models[index].name, chats[index], prompts, responses_per_prompt, sampling, seed
                    )
                    done += len(prompts) * responses_per_prompt
                    if progress is not None:
                        progress(done, total, model=models[index].name)
    return [drawn[i] for i in range(len(models))]


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


def split_evenly(items: Sequence, num_parts: int) -> list[list]:
    """Contiguous parts whose sizes differ by at most one."""
    size, extra = divmod(len(items), num_parts)
    cuts = [i * size + min(i, extra) for i in range(num_parts + 1)]
    return [list(items[a:b]) for a, b in pairwise(cuts)]


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


def _launch(
    model: ModelConfig, placement: PlacementConfig, microbatch: int, run_dir: str, resources: dict[str, float]
) -> WorkerGroup:
    lora: LoraConfig | None = None
    return WorkerGroup.launch(
        "rlhf.workers.rollout:RolloutWorker",
        "rollout",
        size=placement.num_rollout_workers,
        placement=placement,
        run_dir=run_dir,
        args=(model, lora),
        kwargs={"microbatch": microbatch, "threads": placement.threads_per_worker, "follows_trainer": False},
        gpus_per_worker=gpus_per_worker(placement.gpus_per_rollout_worker, resources),
    )


def _draw_one(
    group: WorkerGroup,
    name: str,
    chat: ChatFormat,
    prompts: Sequence[PromptRow],
    responses_per_prompt: int,
    sampling: SamplingConfig,
    seed: int,
) -> Drawn:
    prompt_ids = encode_prompts(prompts, chat, sampling.max_prompt_tokens)
    seeds = [[derive_seed(seed, "draw", row.id, k) for k in range(responses_per_prompt)] for row in prompts]
    tasks = [
        PromptTask(f"{row.id}/{k}", ids, seeds[i][k])
        for i, (row, ids) in enumerate(zip(prompts, prompt_ids, strict=True))
        for k in range(responses_per_prompt)
    ]
    parts = split_evenly(tasks, len(group.actors))
    found = [r for part in group.scatter("generate", [(part, sampling, 0) for part in parts]) for r in part]
    rows = [found[i : i + responses_per_prompt] for i in range(0, len(found), responses_per_prompt)]
    texts = [[chat.decode_response(list(r.response_ids)) for r in row] for row in rows]
    return Drawn(name, texts, rows, seeds)
