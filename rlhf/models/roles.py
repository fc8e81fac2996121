"""One frozen base, four roles: policy, reference, critic and reward model as adapters and scalar heads.

A policy that is trained whole is a copy of the base beside it; the other three stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.algos.masks import position_ids
from rlhf.config.methods import METHODS
from rlhf.errors import ConfigError
from rlhf.models import adapters, blocks, halved, mixed, packing, principal
from rlhf.models.heads import ScalarHead, read_scalars
from rlhf.models.kernels import readout
from rlhf.models.moving import moved, moved_together
from rlhf.models.output import read_logprobs, reads_last_hidden

POLICY, REFERENCE, CRITIC, REWARD = "policy", "ref", "critic", "reward"


@dataclass(frozen=True)
class RewardStart:
    """A reward model on the same base.

    Attributes:
        config / state / head: its adapter and its scalar head (1, hidden).
        mean / std: normalization of its scores, applied once, here.
    """

    config: peft.LoraConfig
    state: dict[str, Tensor]
    head: Tensor
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class RoleInit:
    """Where the adapters start.

    Attributes:
        policy_config: shape of the policy and reference adapters; None: the critic stands alone on this base.
        policy_state: the SFT adapter, or None for a fresh one (a no-op on the base, with pissa and olora but for
            rounding).
        policy_copy: the whole model to train as the policy, equal to base and SFT adapter; None: an adapter is trained.
        reward: a reward model on the same base, if there is one; the critic starts from it.
        holds_reward: it is one of the roles; otherwise it scores elsewhere, and only the critic starts from it.
        critic_config: shape of the critic, or None without a critic.
        method: how adapters start that have no state yet (``principal``).
    """

    policy_config: peft.LoraConfig | None
    policy_state: dict[str, Tensor] | None = None
    policy_copy: PreTrainedModel | None = None
    reward: RewardStart | None = None
    holds_reward: bool = True
    critic_config: peft.LoraConfig | None = None
    method: str = "lora"


class RolesModel(nn.Module):
    """Holds the base once; every pass names the role whose adapter acts.

    Shapes: sequences are (batch, prompt + response), prompts padded on the left, responses on the right; results
    are (batch, response), aligned so that slot t belongs to response token t (the value there is the state
    *before* that token).
    """

    def __init__(self, base: PreTrainedModel, init: RoleInit, *, suppress_ids: tuple[int, ...] = ()) -> None:
        super().__init__()
        self._named: list[tuple[str, nn.Parameter]] = []
        self._suppressed = torch.tensor(suppress_ids, dtype=torch.long)
        self.trains_entropy = False
        """Whether the loss has an entropy term; without one its graph would only cost memory."""
        self._active = mixed.Mix()
        self.policy_copy = init.policy_copy
        self.has_policy = init.policy_config is not None
        first = REFERENCE if self.has_policy else CRITIC
        self.model: PeftModel = adapters.attach(base, init.policy_config or _critic_shape(init), first)
        fresh: list[str] = []  # adapters whose start is the method's
        if init.policy_state is not None:
            adapters.write_adapter(self.model, REFERENCE, init.policy_state)
        elif self.has_policy and self.policy_copy is None:
            principal.start(self.model, REFERENCE, init.method)
            fresh.append(POLICY)
        if self.has_policy and self.policy_copy is None:
            adapters.add(self.model, init.policy_config, POLICY)
            adapters.copy_adapter(self.model, REFERENCE, POLICY)
        embedding: Any = base.get_input_embeddings().weight
        hidden = int(embedding.shape[1])
        like = next(p for _, p in adapters.adapter_parameters(self.model, first))
        self.has_critic = init.critic_config is not None
        if (reward := init.reward) is not None and init.holds_reward:
            self._normalization = reward.mean, reward.std
            adapters.add(self.model, reward.config, REWARD)
            adapters.write_adapter(self.model, REWARD, reward.state)
            self._score_weight = reward.head.float()  # no parameter: an engine in bfloat16 would round it
        if init.critic_config is not None:
            if self.has_policy:
                adapters.add(self.model, _critic_shape(init), CRITIC)
            self._start_critic(init.reward, hidden, like)
            if init.reward is None and METHODS[init.method].holds_half:
                if POLICY not in fresh or not self._start_as_policy():
                    principal.start(self.model, CRITIC, init.method)
                fresh.append(CRITIC)
        self._named = []  # asked for before it was whole
        self._trainable = [p for _, p in self.named_trained()]
        adapters.select(self.model, first, self._trainable)
        for name in fresh:
            principal.hold(self.model, name, init.method)
        self.reads_hidden = all(map(reads_last_hidden, self._causal_models()))
        """Whether log-probs can be read from the last hidden states; otherwise the model makes all logits itself."""
        self.mixes = self._can_mix()
        """Whether one pass can serve several roles; otherwise each role takes a pass of its own."""
        self._multiple = packing.MULTIPLE
        if self.mixes:
            mixed.install(self.model, self._active)
            if self.policy_copy is None:  # it starts at the reference, to the last bit: both go the same way
                blocks.install(self.model, self._active)
                if halved.in_tiles(base):
                    self._multiple = packing.TILE_MULTIPLE

    def _start_as_policy(self) -> bool:
        """Copies the reference into a critic of the same shape, instead of taking all weights apart once more."""
        configs: Any = self.model.peft_config
        ours, theirs = (
            [(key, p.shape) for key, p in adapters.adapter_parameters(self.model, role)] for role in (CRITIC, REFERENCE)
        )
        same = ours == theirs and configs[CRITIC].lora_alpha == configs[REFERENCE].lora_alpha
        if same:
            adapters.copy_adapter(self.model, REFERENCE, CRITIC)
        return same

    def _start_critic(self, start: RewardStart | None, hidden: int, like: Tensor) -> None:
        self.value_head = ScalarHead(hidden, 1, dtype=like.dtype)
        with torch.no_grad():
            if start is not None:  # same affine as the normalized reward model, so first values live on its scale
                adapters.write_adapter(self.model, CRITIC, start.state)
                self.value_head.weight.copy_(start.head.to(like) / start.std)
                self.value_head.bias.fill_(-start.mean / start.std)
            else:
                self.value_head.weight.zero_()
                self.value_head.bias.zero_()

    def named_trained(self) -> list[tuple[str, nn.Parameter]]:
        """Trained tensors with role-prefixed names, policy first."""
        named: list[tuple[str, nn.Parameter]] = []
        if self.has_policy:
            copied = self.policy_copy
            own = adapters.adapter_parameters(self.model, POLICY) if copied is None else copied.named_parameters()
            named += [(f"{POLICY}.{k}", p) for k, p in own]
        if self.has_critic:
            named += [(f"{CRITIC}.{k}", p) for k, p in adapters.adapter_parameters(self.model, CRITIC)]
            named += [(f"{CRITIC}.value_head.{k}", p) for k, p in self.value_head.named_parameters()]
        return named

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module, without walking through it at every call: DeepSpeed asks three times per update."""
        if args or kwargs.get("prefix") or not kwargs.get("recurse", True) or not kwargs.get("remove_duplicate", True):
            return super().named_parameters(*args, **kwargs)
        if not self._named:
            self._named = list(super().named_parameters())
        return iter(self._named)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._named = []  # moving a quantized tensor makes a new one
        return super()._apply(*args, **kwargs)

    def enable_checkpointing(self, *, use_reentrant: bool) -> None:
        """Runs layers again in backward instead of keeping their activations (arXiv:1604.06174).

        Policy and critic share the layers and one backward pass: each recomputation must happen under the adapter
        of the pass it repeats, not under the one that acted last.
        """
        for model in self._causal_models():
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
            for module in model.modules():
                if hasattr(module, "_gradient_checkpointing_func"):
                    module._gradient_checkpointing_func = self._under_its_role(module._gradient_checkpointing_func)
                    module.training = True  # layers recompute in training mode only; their children stay as they are

    def recompute_feed_forward(self) -> None:
        """Keeps neither gate nor up of a feed-forward for backward: a third of the bytes, a quarter more arithmetic.

        Raises:
            ConfigError: some layers do not run in halves, and would go on keeping all.
        """
        layers = sum(type(module).__name__.endswith("DecoderLayer") for module in self.model.modules())
        if not self.mixes or self.policy_copy is not None or halved.recompute(self.model) < layers:
            raise ConfigError(
                "roles.recompute_feed_forward=true: this model's layers do not run in the halves that can be computed "
                "again one by one (plain LoRA on Llama's kind of layer, fp32 on a CPU or bf16 on a GPU, ZeRO below 3); "
                "model.gradient_checkpointing=true does it for any model"
            )

    def _under_its_role(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Callable[..., Any], *args: Any) -> Any:
            parts = self._active.parts

            def again(*inputs: Any) -> Any:
                self._select(parts)
                return function(*inputs)

            return checkpoint(again, *args)

        return run

    def _causal_models(self) -> list[Any]:
        """The base under the adapters, and the policy's own copy if it has one."""
        return [self.model.get_base_model(), *([self.policy_copy] if self.policy_copy is not None else [])]

    def _model_of(self, role: str) -> Any:
        """The causal model that a role's tokens go through."""
        copied = role == POLICY and self.policy_copy is not None
        return self.policy_copy if copied else self.model.get_base_model()

    def _can_mix(self) -> bool:
        """Plain LoRA everywhere but on the output layer, whose logits are those of the last hidden states alone."""
        if not self.reads_hidden or not mixed.can_mix(self.model, list(self.model.peft_config)):
            return False
        return all(map(packing.enable, self._causal_models()))

    def _select(self, parts: mixed.Parts) -> None:
        if self._active.parts != parts:
            self._active.parts = parts
            if not self.mixes and parts[0][0] in self.model.peft_config:
                adapters.select(self.model, parts[0][0], self._trainable)

    def _read_together(
        self, roles: Sequence[str], input_ids: Tensor, attention_mask: Tensor, response_ids: Tensor, temperature: float
    ) -> dict[str, Any]:
        """One pass of each model over the real tokens of all its roles; zeros are put back where the padding was."""
        keep = attention_mask.bool().cpu()  # indices are made in main memory: a GPU would wait at each of them
        short, num_response = packing.without_last(keep), response_ids.shape[1]
        given = keep[:, -num_response:]
        before = _numbers(short)[:, -num_response - 1 : -1][given]  # in the packed row
        last = keep.sum(dim=1).cumsum(0) - 1
        slots, *there = moved_together([given.flatten().nonzero().squeeze(1), before, last], input_ids.device)
        hidden: dict[str, Tensor] = {}  # states that are read, and filler behind them
        for causal in self._causal_models():
            own = [role for role in roles if self._model_of(role) is causal]
            if own:
                reads = [last if role == REWARD else before for role in own]
                keeps = [keep if role == REWARD else short for role in own]
                words, counts = packing.pack(input_ids, keeps, self._multiple, reads)
                kept = words["packing"].kept
                self._select(tuple(zip(own, counts, strict=True)))
                states = getattr(causal, causal.base_model_prefix)(**words).last_hidden_state[0]
                parts = states.split(kept.counts if kept.done else counts)
                hidden |= {
                    role: part if kept.done else part[there[role == REWARD]]
                    for role, part in zip(own, parts, strict=True)
                }
        found: dict[str, Any] = {}
        for role, states in hidden.items():
            if role == CRITIC:
                found[role] = _back(self.value_head(states).squeeze(-1)[: len(before)], slots, given.shape)
            elif role == REWARD:
                found[role] = self._normalized(states)[: len(last)]
            else:
                found[role] = self._read_logprobs(role, states, response_ids, slots, temperature)
        return found

    def _read_apart(
        self, roles: Sequence[str], input_ids: Tensor, attention_mask: Tensor, response_ids: Tensor, temperature: float
    ) -> dict[str, Any]:
        """A padded pass per role, by PEFT's layers and the model's own last steps."""
        keep, num_response = attention_mask.bool().cpu(), response_ids.shape[1]
        steps = torch.arange(keep.shape[1])
        indices = [keep[:, -num_response:].flatten().nonzero().squeeze(1), (keep.long() * steps).argmax(dim=1)]
        slots, last = moved_together(indices, input_ids.device)
        words = {
            "input_ids": input_ids,
            "attention_mask": moved(keep.long(), input_ids.device),
            "position_ids": moved(position_ids(keep), input_ids.device),
            "use_cache": False,
        }
        found: dict[str, Any] = {}
        for role in roles:
            self._select(((role, None),))
            causal = self._model_of(role)
            if role in (POLICY, REFERENCE) and not self.reads_hidden:
                logits = causal(**words, logits_to_keep=num_response + 1).logits[:, :-1]
                told = readout.read(logits, response_ids, **self._words(temperature, logits.device))
                found[role] = told.logprobs, told.entropy
                continue
            hidden = getattr(causal, causal.base_model_prefix)(**words).last_hidden_state  # (batch, sequence, hidden)
            if role in (POLICY, REFERENCE):
                before = hidden[:, -num_response - 1 : -1].flatten(0, 1)[slots]
                found[role] = self._read_logprobs(role, before, response_ids, slots, temperature)
            elif role == CRITIC:
                found[role] = self.value_head(hidden[:, -num_response - 1 : -1]).squeeze(-1)
            else:
                found[role] = self._normalized(hidden[torch.arange(len(hidden), device=hidden.device), last])
        return found

    def _words(self, temperature: float, device: torch.device) -> dict[str, Any]:
        self._suppressed = self._suppressed.to(device)
        return {
            "temperature": temperature,
            "suppress_ids": self._suppressed,
            "entropy_graph": self.trains_entropy,
        }

    def _read_logprobs(
        self, role: str, states: Tensor, response_ids: Tensor, slots: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """From the states before the response tokens in some slots of the flattened (batch, response), and filler
        behind them."""
        head, ids = self._model_of(role).get_output_embeddings(), response_ids.flatten()[slots]
        rest = -len(states) % packing.MULTIPLE
        states = F.pad(states, (0, 0, 0, rest)) if rest else states
        filler = ids.new_zeros(len(states) - len(ids))
        told = read_logprobs(head, states, torch.cat([ids, filler]), **self._words(temperature, states.device))
        shape = response_ids.shape
        return _back(told.logprobs[: len(ids)], slots, shape), _back(told.entropy[: len(ids)], slots, shape)

    def _normalized(self, last: Tensor) -> Tensor:
        """Reward of the last tokens' states (batch, hidden), on the normalized scale."""
        mean, std = self._normalization
        self._score_weight = self._score_weight.to(last.device)
        return (read_scalars(last, self._score_weight).squeeze(-1) - mean) / std

    def read(
        self,
        roles: Sequence[str],
        input_ids: Tensor,
        attention_mask: Tensor,
        response_ids: Tensor,
        temperature: float,
    ) -> dict[str, Any]:
        """What each role says about the same sequences, in one pass where the adapters and the model allow it.

        Args:
            attention_mask: best in main memory, wherever the ids are: a GPU that holds it is waited for.

        Returns:
            By role: policy and reference (log-probs, entropies), critic values, each (batch, response) float32, without
            meaning in padded slots; reward scores, (batch,) float32, read at the last real token.
        """
        way = self._read_together if self.mixes else self._read_apart
        return way(roles, input_ids, attention_mask, response_ids, temperature)

    def logprobs(
        self, role: str, input_ids: Tensor, attention_mask: Tensor, response_ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the response tokens, both (batch, response) float32."""
        return self.read([role], input_ids, attention_mask, response_ids, temperature)[role]

    def values(self, input_ids: Tensor, attention_mask: Tensor, num_response: int) -> Tensor:
        """State values before each response token, (batch, response) float32."""
        return self.read([CRITIC], input_ids, attention_mask, input_ids[:, -num_response:], 1.0)[CRITIC]

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalized reward-model scores read at the last real token, (batch,) float32."""
        return self.read([REWARD], input_ids, attention_mask, input_ids[:, -1:], 1.0)[REWARD]

    def forward(self, task: str, **inputs: Any) -> Any:
        """One entry for every pass, so that the engine's hooks see it: task is a method's name or ``train``."""
        if task == "train":
            want_values = inputs.pop("want_values", False)
            found = self.read([POLICY, CRITIC] if want_values else [POLICY], **inputs)
            return *found[POLICY], found.get(CRITIC)
        if task not in ("read", "logprobs", "values", "scores"):
            raise ValueError(f"unknown task {task!r}")
        return getattr(self, task)(**inputs)


def _critic_shape(init: RoleInit) -> Any:
    """The critic's adapter: the reward model's where it starts from one."""
    return init.critic_config if init.reward is None else init.reward.config


def _back(values: Tensor, slots: Tensor, shape: torch.Size) -> Tensor:
    """Values (n,) of the real tokens in their slots (n,) of the flattened (batch, response), zeros elsewhere."""
    return values.new_zeros(shape.numel()).index_put((slots,), values).view(shape)


def _numbers(keep: Tensor) -> Tensor:
    """(batch, sequence) long: which of the kept tokens each is, in order."""
    return keep.flatten().cumsum(0).view_as(keep) - 1
