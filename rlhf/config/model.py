"""Which model is trained, how it is held in memory, and which adapter is put on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rlhf.config.base import NAMED, SECTION, Name, Section
from rlhf.config.methods import METHODS, PLAIN_LORA, why_not

Beta = Annotated[float, Field(ge=0, lt=1)]
"""Decay of a moment of Adam (arXiv:1412.6980)."""


class ModelConfig(Section):
    """The base model of a stage."""

    name: Name
    """A model directory, a hub id, a run directory of an earlier stage, or ``builtin:helpline_base``."""
    revision: str | None = None
    """Hub commit; in full together with ``trust_remote_code`` (for a directory: the hash of its Python files)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 on an accelerator, float32 on a CPU."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Frozen base weights in 4 or 8 bits (QLoRA, arXiv:2305.14314)."""
    double_quantization: bool = True
    """nf4 only: quantize the scales of its blocks as well, 0.37 bits per weight less (arXiv:2305.14314 sec. 3)."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """``auto`` is ``sdpa``, and ``eager`` for models that cap the logits of their attention (Gemma 2): sdpa cannot."""
    gradient_checkpointing: bool = False
    """Compute each layer's activations again in backward instead of keeping them: far less memory for another forward
    pass (arXiv:1604.06174)."""
    trust_remote_code: bool = False
    """Lets a model run Python code that it brings; needs ``revision``."""
    chat_style: Literal["auto", "model", "default", "plain"] = "auto"
    """Chat template: the model's own, the project's default, or plain continuation of text. ``auto``: that of the run
    which the model comes from; otherwise the model's own, or the default where it has none."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> ModelConfig:
        if self.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                "trust_remote_code=true runs code from the model's repository: set revision to the full commit hash "
                "(40 hex digits) of the code that was read; a branch or tag can change"
            )
        return self


NameOrModel = Annotated[
    Annotated[Name, Tag(NAMED)] | Annotated[ModelConfig, Tag(SECTION)],
    Discriminator(lambda given: NAMED if isinstance(given, str) else SECTION),
]
"""A model by its name alone, or with settings of its own."""


class LoraConfig(Section):
    """The adapter: LoRA (arXiv:2106.09685) unless ``method`` names another of ``rlhf peft list``."""

    method: str = "lora"
    """``lora``, ``dora``, ``rslora``, ``pissa``, ``olora``, ``ia3``, ``oft``, ...: ``rlhf peft list`` says what each
    can do."""
    r: int = Field(16, ge=1, le=1024)
    """Rank of the update of each matrix; with another method what ``rlhf peft list`` calls its size."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the update: alpha / r times B A. Methods without such a scale leave it unused."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a layer's inputs that training drops on their way through the adapter; 0 in PPO and DPO."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers with an adapter: every linear one but the output (``all-linear``; ia3 and ln_tuning: those that they are
    made for), names such as ``[q_proj, v_proj]``, or one regular expression."""
    use_dora: bool = False
    """Weight-decomposed LoRA (arXiv:2402.09353)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r, so that large ranks learn, too (arXiv:2312.03732)."""

    @model_validator(mode="after")
    def _method_is_usable(self) -> LoraConfig:
        if reason := why_not(self.method):
            raise ValueError(reason)
        if self.method != "lora" and (self.use_dora or self.use_rslora):
            raise ValueError(
                f"lora.use_dora and lora.use_rslora change LoRA, not lora.method={self.method}: leave them false, "
                "or set lora.method to dora or rslora"
            )
        if METHODS[self.method].holds_half and self.dropout:
            raise ValueError(
                f"lora.dropout={self.dropout:g} would drop from the part of the base that lora.method={self.method} "
                "holds in its second half, too: set it to 0"
            )
        return self

    @property
    def tensor_rank(self) -> int:
        """Rank of the tensors: twice ``r`` where half of them is held."""
        return self.r * (2 if METHODS[self.method].holds_half else 1)

    @property
    def is_plain(self) -> bool:
        """Whether its layers are LoRA's own: a product with A and one with B beside the base's."""
        return not self.use_dora and self.method in PLAIN_LORA


class EngineConfig(Section):
    """DeepSpeed ZeRO (arXiv:1910.02054)."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """Over the ranks are cut: 0 nothing, 1 optimizer states, 2 gradients as well, 3 the parameters as well."""
    offload_optimizer: bool = False
    """Keep optimizer states in main memory instead of a GPU's (arXiv:2101.06840); ZeRO 1 to 3."""
    offload_parameters: bool = False
    """Keep the parameters in main memory and fetch them layer by layer (arXiv:2104.07857); ZeRO-3 only."""
    reduce_bucket_elements: int = Field(50_000_000, ge=1)
    """Gradients are reduced in buckets of at most this many elements; ZeRO-3 holds one whole bucket all the time."""

    @model_validator(mode="after")
    def _offload_needs_stage(self) -> EngineConfig:
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError("offload_parameters needs zero_stage=3")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        return self


class OptimConfig(Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's step size after warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay per step, times the learning rate (arXiv:1711.05101)."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Of the learning rate after warm-up, over the run's optimizer steps: constant, or down to 0 in a line or half a
    cosine."""
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of all optimizer steps over which the learning rate rises from zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A gradient with a larger norm, over all that is trained (in PPO: over the policy), is scaled down to it."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW (arXiv:1711.05101); ``adamw_8bit`` holds both moments in 8 bits (arXiv:2110.02861)."""


class PlacementConfig(Section):
    """How many processes run, and where."""

    num_ranks: int = Field(1, ge=1)
    """Training processes (DeepSpeed ranks)."""
    num_rollout_workers: int = Field(1, ge=1)
    """Processes that draw responses (PPO, sample, evaluate)."""
    num_scorer_workers: int = Field(1, ge=1)
    """Processes for reward models that do not stand on the policy's base; each holds all of these. None needed, none
    started."""
    num_critic_ranks: int = Field(1, ge=1)
    """Training processes of a critic with a base of its own (``roles.critic``); without one none is started."""
    cpus_per_worker: float = Field(1.0, ge=0)
    """CPUs that Ray sets aside for each worker, of any role; a fraction lets several share one."""
    gpus_per_rank: float | None = Field(None, ge=0)
    """null: one GPU per rank where the cluster has GPUs, otherwise none; 0: on CPUs. To be set with ``wait_for_nodes``.
    A fraction for more than one rank needs more than half of a GPU, alone or together with what shares it by
    ``layout``."""
    gpus_per_rollout_worker: float | None = Field(None, ge=0)
    """As ``gpus_per_rank``, per rollout worker; with vLLM null means ``rollout.tensor_parallel`` GPUs."""
    gpus_per_scorer_worker: float | None = Field(None, ge=0)
    """As ``gpus_per_rank``, per scorer worker."""
    gpus_per_critic_rank: float | None = Field(None, ge=0)
    """As ``gpus_per_rank``, per rank of a critic with a base of its own."""
    threads_per_worker: int = Field(1, ge=1)
    """Intra-op CPU threads of every worker."""
    ray_address: str | None = None
    """``auto`` or ``host:port`` joins a cluster; None starts a private Ray runtime, except inside a Ray job."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How the workers of one role lie on nodes; the strict ones refuse what they cannot have."""
    layout: Literal["split", "colocated"] = "split"
    """Every role has resources of its own, or rollout worker i, scorer worker i and critic rank i share a node (and
    GPU, by fractions) with rank i."""
    rank_labels: tuple[str, ...] = ()
    """Node labels that training ranks need, e.g. ``ray.io/accelerator-type=H100``."""
    rollout_labels: tuple[str, ...] = ()
    """Node labels that rollout workers need."""
    scorer_labels: tuple[str, ...] = ()
    """Node labels that scorer workers need."""
    critic_labels: tuple[str, ...] = ()
    """Node labels that ranks of a critic with a base of its own need."""
    wait_for_nodes: bool = False
    """Wait (at most ``start_timeout_seconds``) for nodes that an autoscaler may add, instead of refusing at once. What
    each worker takes of their GPUs has to be said then."""
    network_interface: str | None = None
    """Interface of the collectives; None: what ``GLOO_SOCKET_IFNAME`` and ``NCCL_SOCKET_IFNAME`` say where a node was
    started, and between nodes otherwise the one that has the node's address."""
    start_timeout_seconds: float = Field(180.0, gt=0)
    """For a place, and then for workers to load: ranks on hosts that read at different speeds wait so long for one
    another, and after that ``collective_timeout_seconds``."""
    call_timeout_seconds: float = Field(900.0, gt=0)
    """A worker that neither reports nor runs its model for so long counts as frozen; a call as a whole may take
    longer."""
    collective_timeout_seconds: float = Field(120.0, gt=0)
    """Longest wait of training ranks for one another in a collective operation, once all have loaded."""

    @model_validator(mode="after")
    def _rules(self) -> PlacementConfig:
        for label in (*self.rank_labels, *self.rollout_labels, *self.scorer_labels, *self.critic_labels):
            if not all(label.partition("=")):
                raise ValueError(f"label {label!r} must look like key=value")
        if self.layout == "colocated" and (self.gpus_per_rank is None) != (self.gpus_per_rollout_worker is None):
            raise ValueError("layout=colocated shares GPUs by fractions: set gpus_per_rank and gpus_per_rollout_worker "
                             "both, e.g. to 0.5")  # fmt: skip
        return self

    def why_refused(self, roles: Sequence[str], perhaps: Sequence[str] = ()) -> str | None:
        """Why workers of these roles can never be placed so, or not without a guess; None: nothing is in the way.

        Args:
            roles: those that a stage starts, named as in ``num_ROLEs`` and ``gpus_per_ROLE``.
            perhaps: those that it may turn out to start.
        """
        shares = {role: getattr(self, f"gpus_per_{role}") for role in (*roles, *perhaps)}
        unset = [f"gpus_per_{role}" for role in roles if shares[role] is None]
        if self.wait_for_nodes and unset:
            return (
                f"placement.wait_for_nodes=true waits for nodes of which nobody knows yet whether they have GPUs: set "
                f"placement.{' and placement.'.join(unset)} (1: a GPU for each; 0: on CPUs)"
            )
        parts = {role: share for role, share in shares.items() if share is not None and 0 < share < 1}
        together = [role for role in parts if role in roles]
        if self.layout == "colocated" and round(sum(parts[role] for role in together), 4) > 1:
            return (
                f"placement.layout=colocated puts {self._said(together, parts)} on one GPU, which is more than a whole "
                "one: lower them to a sum of at most 1, or set layout=split"
            )
        for role in ("rank", "critic_rank"):
            if role in together and self.strategy != "STRICT_SPREAD" and (reason := self._two_on_one(role, parts)):
                return reason
        return None

    def _two_on_one(self, role: str, parts: dict[str, float]) -> str | None:
        """Why two ranks of a group may find themselves on one GPU: what lies beside both leaves room for that."""
        size = self._size(role)
        if size < 2:
            return None
        beside = [
            [other for other in parts if other == role or (self.layout == "colocated" and index < self._size(other))]
            for index in (size - 2, size - 1)
        ]
        if round(sum(parts[other] for others in beside for other in others), 4) > 1:
            return None
        return (
            f"placement.num_{role}s={size} with {self._said(beside[1], parts)} lets two of these ranks share one GPU, "
            f"which NCCL refuses (duplicate GPU): set gpus_per_{role}=1, num_{role}s=1, strategy=STRICT_SPREAD (one "
            "rank per node), or layout=colocated with fractions that sum up to 1 for every rank"
        )

    def _size(self, role: str) -> int:
        return int(getattr(self, f"num_{role}s"))

    @staticmethod
    def _said(roles: Sequence[str], parts: dict[str, float]) -> str:
        return " + ".join(f"gpus_per_{role}={parts[role]:g}" for role in roles)


class TelemetryConfig(Section):
    """Where numbers go; metrics.jsonl is always written."""

    tensorboard: bool = True
    """Write TensorBoard event files into ``tensorboard/`` of the run directory."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project; needs the package ``wandb``. null: none."""
    log_level: Literal["DEBUG", "INFO", "WARNING"] = "INFO"
    """Least severity of the records in the run's logs."""
