"""What a stage would do, without starting anything: derived sizes, trained parameters, files to be written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlhf.config import (
    DpoConfig,
    EvaluateConfig,
    ModelConfig,
    PairConfig,
    PpoConfig,
    RewardConfig,
    RewardModelSource,
    SampleConfig,
    SftConfig,
    TrainerConfig,
    config_hash,
)
from rlhf.config.base import Section
from rlhf.config.methods import METHODS
from rlhf.config.model import LoraConfig
from rlhf.config.scores import ScoreSource
from rlhf.models import adapters
from rlhf.models.loading import build_empty, torch_dtype
from rlhf.models.peft_methods import method_name, method_of
from rlhf.models.policy_source import resolve_policy
from rlhf.models.source import ModelSource, is_path
from rlhf.models.tokenizer import load_chat
from rlhf.stages import evaluate as evaluate_stage
from rlhf.stages import pairs
from rlhf.stages import sample as sample_stage
from rlhf.stages import sft as sft_stage
from rlhf.stages.anchor import load_anchor
from rlhf.stages.critic_ranks import critic_origin
from rlhf.stages.drawing import encode_prompts
from rlhf.stages.lengths import check_lengths
from rlhf.stages.prompts import read_prompts
from rlhf.stages.reward import sequences_to_normalize_on
from rlhf.stages.reward_models import placement_rows, reward_models_of
from rlhf.stages.scoring import check_sources
from rlhf.stages.sources import rows_per_source
from rlhf.stages.starting_model import with_starting_models

Plan = list[tuple[str, str]]


def plan_stage(config: Section) -> Plan:
    """Rows of (key, value) that ``--dry-run`` prints; reads data and the model's shape.

    Nothing of the run is started; only a score function is imported, in the process of its own that calls it.

    Raises:
        RlhfError: whatever would stop the run before its workers start.
    """
    config = with_starting_models(config)
    makers: dict[type, Callable[[Any], Plan]] = {
        SftConfig: _plan_sft,
        RewardConfig: _plan_pairs,
        DpoConfig: _plan_pairs,
        PpoConfig: _plan_ppo,
        SampleConfig: _plan_sample,
        EvaluateConfig: _plan_evaluate,
    }
    rows = [*makers[type(config)](config), ("config hash", config_hash(config)[:12])]
    missing = ", ".join(f"{key}={name}" for key, name in missing_inputs(config).items())
    return [*rows, ("not there yet", f"{missing}: train it first, or check the path")] if missing else rows


def missing_inputs(config: Section) -> dict[str, str]:
    """Runs that the config names and that do not exist, by key: a plan does without, the run itself would stop."""
    named: dict[str, str] = {}
    if isinstance(config, PpoConfig):
        sources = [(f"scores[{index}].run", score) for index, score in enumerate(config.scores)]
        named = {key: score.run for key, score in sources if isinstance(score, RewardModelSource)}
        if config.critic_is_apart and is_path(config.roles.critic or ""):
            named["roles.critic"] = str(config.roles.critic)
    elif isinstance(config, EvaluateConfig):
        named = {"judge.run": config.judge.run} if isinstance(config.judge, RewardModelSource) else {}
    return {key: name for key, name in named.items() if not Path(name).exists()}


def trained_parameters(
    source: ModelSource, model: ModelConfig, lora: LoraConfig | None, *, head: bool
) -> tuple[int, int]:
    """(trained, all) parameter counts, from the model's shape alone.

    Args:
        head: the model gets a scalar head that is trained too.
    """
    empty = build_empty(source, model)
    base = sum(p.numel() for p in empty.parameters())
    scalar = 0
    if head:
        output = empty.get_output_embeddings()
        tied = output is None or output.weight is empty.get_input_embeddings().weight
        scalar = empty.config.get_text_config().hidden_size
        base -= 0 if tied or output is None else output.weight.numel()
    if lora is None:
        return base + scalar, base + scalar
    config = adapters.read_peft_config(source.adapter) if source.adapter else adapters.peft_config(lora)
    with torch.device("meta"):
        trained, _ = adapters.count_parameters(adapters.attach(empty, config, "default"))
    return trained + scalar, base + trained + scalar


def _plan_sft(config: SftConfig) -> Plan:
    source, chat = sft_stage.open_model(config)
    with tempfile.TemporaryDirectory() as scratch:
        rows = sft_stage.read_rows(config, chat, Path(scratch))
    batch, unit = config.batch, "packed rows" if config.packing else "rows"
    minibatch = (
        f"{batch.minibatch_sequences} {unit} = {batch.microbatch_sequences_per_gpu} per pass x "
        f"{config.gradient_accumulation} accumulated x {config.placement.num_ranks} ranks"
    )
    return [
        *_model_rows(source, config.model, config.lora, chat.style, head=False),
        ("rows", _rows_text(rows.counts)),
        ("minibatch", minibatch),
        ("optimizer steps", f"{rows.num_steps} (the last one is filled up from the next shuffle)"),
        *_engine_rows(config),
        *_files(config.run_dir, "adapter/" if config.lora else "model/", "tokenizer/"),
    ]


def _plan_pairs(config: PairConfig) -> Plan:
    source, chat = pairs.open_model(config)
    with tempfile.TemporaryDirectory() as scratch:
        rows = pairs.read_pairs(config, chat, Path(scratch))
        if isinstance(config, RewardConfig):
            sequences, _ = sequences_to_normalize_on(config, rows.train, chat, Path(scratch))
    minibatch = (
        f"{config.batch.minibatch_pairs} pairs = {config.batch.microbatch_pairs_per_gpu} per pass x "
        f"{config.gradient_accumulation} accumulated x {config.placement.num_ranks} ranks"
    )
    folder = "adapter/" if config.lora else "model/"
    own: Plan
    saved: tuple[str, ...]
    if isinstance(config, RewardConfig):
        own, saved = [("normalized on", f"{len(sequences)} sequences")], (folder, f"{folder}reward.json")
    else:
        smoothed = f", label smoothing {config.label_smoothing:g}" if config.label_smoothing else ""
        own, saved = [("loss", f"{config.loss_type}, beta {config.beta:g}{smoothed}")], (folder,)
        own.append(("reference", f"{_source_text(source)}, {_reference_text(config)}"))
    return [
        *_model_rows(source, config.model, config.lora, chat.style, head=isinstance(config, RewardConfig)),
        ("pairs", _rows_text(rows.counts)),
        *own,
        ("minibatch", minibatch),
        ("optimizer steps", f"{rows.num_steps} (the last one is filled up from the next shuffle)"),
        *_engine_rows(config),
        *_files(config.run_dir, *saved, "tokenizer/"),
    ]


def _reference_text(config: DpoConfig) -> str:
    return "as a frozen adapter" if config.lora is not None else "as a second copy of the model"


def _plan_ppo(config: PpoConfig) -> Plan:
    source = resolve_policy(config.model.name, config.model.revision)
    chat = load_chat(source, config.model)[1]
    check_lengths(config, source)
    prompts = read_prompts(config, None)
    encode_prompts(prompts, chat, config.rollout.max_prompt_tokens)
    shares = rows_per_source(config.prompts, prompts)
    _check_there({f"scores[{index}]": score for index, score in enumerate(config.scores)}, config)
    batch, placement = config.batch, config.placement
    updates, whole = config.minibatches * batch.epochs, config.policy_weights == "full"
    rollouts = (
        f"{batch.sequences_per_step} = {batch.prompts_per_step} prompts x {batch.responses_per_prompt} responses, "
        f"by {placement.num_rollout_workers} rollout workers"
    )
    if batch.microbatch_tokens_per_gpu is None:
        minibatch = (
            f"{batch.minibatch_sequences} sequences = {batch.microbatch_sequences_per_gpu} per pass x "
            f"{config.microbatches_per_rank()} accumulated x {placement.num_ranks} ranks"
        )
    else:
        minibatch = (
            f"{batch.minibatch_sequences} sequences, in passes of up to {batch.microbatch_tokens_per_gpu} tokens on "
            f"{placement.num_ranks} ranks"
        )
    sources = ", ".join(f"{s.weight:g} x {_score_name(s)}" for s in config.scores)
    return [
        *_model_rows(source, config.model, None if whole else config.lora, chat.style, head=False),
        ("critic", _critic_text(config, source)),
        ("prompts", f"{len(prompts)} = {' + '.join(map(str, shares))} of its sources" if shares else str(len(prompts))),
        ("rollouts per step", rollouts),
        ("minibatch", minibatch),
        *_ptx_rows(config, source),
        ("optimizer steps", f"{config.num_steps * updates} = {config.num_steps} steps x {batch.epochs} epochs x "
                            f"{config.minibatches} minibatches"),
        ("scores", sources),
        *_reward_model_rows(config, source),
        ("KL", f"{config.kl.mode}, {config.kl.estimator}, coefficient {config.kl.coef:g}, limit {config.kl.limit}"),
        *_engine_rows(config),
        *_files(config.run_dir, "model/" if whole else "adapter/", "tokenizer/", "checkpoints/", "rollouts.jsonl"),
    ]  # fmt: skip


def _critic_text(config: PpoConfig, source: ModelSource) -> str:
    name = config.roles.critic
    if not config.uses_critic or name is None:
        return "an adapter of its own and a scalar head" if config.uses_critic else "none"
    text = f"an adapter and a scalar head on {name}, on {config.placement.num_critic_ranks} ranks of its own"
    if "roles.critic" in missing_inputs(config):
        return text  # it is yet to be trained
    origin = critic_origin(config, source)
    if origin is None:
        return text
    trained, total = trained_parameters(origin.source, origin.model, config.lora, head=True)
    return f"{text}, {trained + 1:,} of {total:,} parameters trained"


def _reward_model_rows(config: PpoConfig, source: ModelSource) -> Plan:
    runs = [score.run for score in config.scores if isinstance(score, RewardModelSource)]
    if not runs or not all(Path(run).exists() for run in runs):
        return []  # they are yet to be trained
    chat = load_chat(source, config.model)[1]
    return placement_rows(config, reward_models_of(config, source, chat))


def _ptx_rows(config: PpoConfig, source: ModelSource) -> Plan:
    tokenizer, chat = load_chat(source, config.model)
    anchor = load_anchor(config, chat, tokenizer.pad_token_id)
    if anchor is None:
        return []
    per_update, rows = anchor.ptx.sequences_per_update, len(anchor.rows)
    return [("anchor", f"{per_update} of {rows} demonstrations per optimizer step, coefficient {anchor.ptx.coef:g}")]


def _plan_sample(config: SampleConfig) -> Plan:
    policy, prompts = sample_stage.open_inputs(config, None)
    total = len(prompts) * config.responses_per_prompt
    return [
        ("model", _source_text(policy.source)),
        ("precision", _precision_text(policy.model)),
        ("responses", f"{total} = {len(prompts)} prompts x {config.responses_per_prompt}"),
        ("sampling", f"temperature {config.sampling.temperature:g}, top_p {config.sampling.top_p:g}, "
                     f"at most {config.sampling.max_response_tokens} tokens"),
        ("workers", str(config.placement.num_rollout_workers)),
        ("files", f"{config.run_dir}/: config.yaml, candidates.jsonl, logs/"),
    ]  # fmt: skip


def _plan_evaluate(config: EvaluateConfig) -> Plan:
    (policy, baseline), prompts = evaluate_stage.open_inputs(config, None)
    _check_there({"judge": config.judge}, config)
    return [
        ("policy", _source_text(policy.source)),
        ("baseline", _source_text(baseline.source)),
        ("precision", " and ".join(dict.fromkeys(_precision_text(each.model) for each in (policy, baseline)))),
        ("prompts", str(len(prompts))),
        ("judge", _score_name(config.judge)),
        ("files", f"{config.run_dir}/: config.yaml, answers.json, samples.jsonl, summary.json, logs/"),
    ]


def _model_rows(source: ModelSource, model: ModelConfig, lora: LoraConfig | None, style: str, *, head: bool) -> Plan:
    trained, total = trained_parameters(source, model, lora, head=head)
    if lora is None:
        method = "full fine-tuning"
    elif source.adapter is not None:
        method = f"continues a copy of {source.adapter} ({_saved_adapter_text(source.adapter)})"
    else:
        method = f"new {_adapter_text(lora)} on {lora.target_modules}"
    return [
        ("model", _source_text(source)),
        ("precision", _precision_text(model)),
        ("chat style", style),
        ("adapter", method),
        ("trained parameters", f"{trained:,} of {total:,} ({100 * trained / total:.3g}%)"),
    ]


def _check_there(sources: dict[str, ScoreSource], config: Section) -> None:
    """Refuses what the run would refuse of its sources, those left out that are yet to be trained."""
    missing = missing_inputs(config)
    check_sources({key: source for key, source in sources.items() if f"{key}.run" not in missing}, opening=True)


def _precision_text(model: ModelConfig) -> str:
    computed = f"{str(torch_dtype(model)).removeprefix('torch.')} here"
    return computed if model.quantization == "none" else f"{computed}, base {model.quantization}"


def _adapter_text(lora: LoraConfig) -> str:
    """Method and size, the size in the method's own words."""
    name = method_name(lora)
    size = METHODS[name].size
    if size == "r: rank":
        return f"{name}, r={lora.r}, alpha={lora.alpha:g}"
    return name if size == "none" else f"{name}, {size.removeprefix('r: ')} {lora.r}"


def _saved_adapter_text(directory: Path) -> str:
    config = adapters.read_peft_config(directory)
    found = {"r": getattr(config, "r", None), "alpha": getattr(config, "lora_alpha", None)}
    return ", ".join([method_of(config), *(f"{key}={value:g}" for key, value in found.items() if value is not None)])


def _engine_rows(config: TrainerConfig | PpoConfig) -> Plan:
    engine, placement = config.engine, config.placement
    offloaded = [name for name in ("optimizer", "parameters") if getattr(engine, f"offload_{name}")]
    where = placement.ray_address or "a private Ray runtime"
    offload = f", {' and '.join(offloaded)} on the CPU" if offloaded else ""
    return [
        ("engine", f"DeepSpeed ZeRO-{engine.zero_stage}{offload}"),
        ("ranks", f"{placement.num_ranks} on {where}"),
    ]


def _files(run_dir: str, *names: str) -> Plan:
    common = ("config.yaml", "config.json", "metrics.jsonl", "logs/", *names, "summary.json", "run.json")
    return [("files", f"{run_dir}/: {', '.join(common)}")]


def _source_text(source: ModelSource) -> str:
    return source.base if source.run_dir is None else f"{source.run_dir} (on {source.base})"


def _score_name(source: ScoreSource) -> str:
    return next(str(getattr(source, key)) for key in ("run", "path", "url") if hasattr(source, key))


def _rows_text(counts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in counts.items() if value or key in ("train", "evaluation"))
