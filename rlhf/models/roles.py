"""One frozen base, four roles: policy, reference, critic and reward model as adapters and scalar heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.algos.logprobs import entropy, token_logprobs
from rlhf.algos.masks import position_ids
from rlhf.models import adapters

POLICY, REFERENCE, CRITIC, REWARD = "policy", "ref", "critic", "reward"


@dataclass(frozen=True)
class RoleInit:
    """Where the adapters start.

    Attributes:
        policy_config: shape of the policy and reference adapters.
        policy_state: the SFT adapter, or None for a fresh one (an exact no-op on the base).
        reward_config / reward_state / reward_head: the reward model on the same base, if it is.
        reward_mean / reward_std: normalization of its scores, applied once, here.
        critic_config: shape of the critic, or None without a critic.
    """

    policy_config: peft.LoraConfig
    policy_state: dict[str, Tensor] | None = None
    reward_config: peft.LoraConfig | None = None
    reward_state: dict[str, Tensor] | None = None
    reward_head: Tensor | None = None
    reward_mean: float = 0.0
    reward_std: float = 1.0
    critic_config: peft.LoraConfig | None = None


class RolesModel(nn.Module):
    """Holds the base once; every pass names the role whose adapter acts.

    Shapes: sequences are (batch, prompt + response), prompts padded on the left, responses on the right; results
    are (batch, response), aligned so that slot t belongs to response token t (the value there is the state
    *before* that token).
    """

    def __init__(self, base: PreTrainedModel, init: RoleInit, *, suppress_ids: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.suppress_ids = suppress_ids
        self.trains_entropy = False
        """Whether the loss has an entropy term; without one its graph would only cost memory."""
        self._active = ""
        self.model: PeftModel = adapters.attach(base, init.policy_config, POLICY)
        if init.policy_state is not None:
            adapters.write_adapter(self.model, POLICY, init.policy_state)
        adapters.add(self.model, init.policy_config, REFERENCE)
        adapters.copy_adapter(self.model, POLICY, REFERENCE)
        embedding: Any = base.get_input_embeddings().weight
        hidden = int(embedding.shape[1])
        like = next(p for _, p in adapters.adapter_parameters(self.model, POLICY))
        self.reward_mean, self.reward_std = init.reward_mean, init.reward_std
        self.has_reward = init.reward_state is not None
        self.has_critic = init.critic_config is not None
        if init.reward_state is not None and init.reward_config is not None and init.reward_head is not None:
            adapters.add(self.model, init.reward_config, REWARD)
            adapters.write_adapter(self.model, REWARD, init.reward_state)
            self.score_head = nn.Linear(hidden, 1, bias=False, dtype=like.dtype)
            self.score_head.weight = nn.Parameter(init.reward_head.to(like), requires_grad=False)
        if init.critic_config is not None:
            self._add_critic(init.reward_config or init.critic_config, hidden, like)
        self._trainable = [p for _, p in self.named_trained()]
        self._select(POLICY)

    def _add_critic(self, config: peft.LoraConfig, hidden: int, like: Tensor) -> None:
        adapters.add(self.model, config, CRITIC)
        self.value_head = nn.Linear(hidden, 1, dtype=like.dtype)
        with torch.no_grad():
            if self.has_reward:  # same affine as the normalized reward model, so first values live on its scale
                adapters.copy_adapter(self.model, REWARD, CRITIC)
                self.value_head.weight.copy_(self.score_head.weight / self.reward_std)
                self.value_head.bias.fill_(-self.reward_mean / self.reward_std)
            else:
                self.value_head.weight.zero_()
                self.value_head.bias.zero_()

    def named_trained(self) -> list[tuple[str, nn.Parameter]]:
        """Trained tensors with role-prefixed names, policy first."""
        named = [(f"{POLICY}.{k}", p) for k, p in adapters.adapter_parameters(self.model, POLICY)]
        if self.has_critic:
            named += [(f"{CRITIC}.{k}", p) for k, p in adapters.adapter_parameters(self.model, CRITIC)]
            named += [(f"{CRITIC}.value_head.{k}", p) for k, p in self.value_head.named_parameters()]
        return named

    def enable_checkpointing(self, *, use_reentrant: bool) -> None:
        """Runs layers again in backward instead of keeping their activations (arXiv:1604.06174).

        Policy and critic share the layers and one backward pass: each recomputation must happen under the adapter
        of the pass it repeats, not under the one that acted last.
        """
        base: Any = self.model.get_base_model()
        base.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        base.enable_input_require_grads()
        for module in base.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = self._under_its_role(module._gradient_checkpointing_func)
                module.training = True  # layers recompute in training mode only; their children stay as they are

    def _under_its_role(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        def run(function: Callable[..., Any], *args: Any) -> Any:
            role = self._active

            def again(*inputs: Any) -> Any:
                self._select(role)
                return function(*inputs)

            return checkpoint(again, *args)

        return run

    def _select(self, role: str) -> None:
        if self._active != role:
            adapters.select(self.model, role, self._trainable)
            self._active = role

    def _backbone(self, role: str, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self._select(role)
        causal: Any = self.model.get_base_model()
        backbone = getattr(causal, causal.base_model_prefix)
        return backbone(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids(attention_mask),
            use_cache=False,
        ).last_hidden_state  # (batch, sequence, hidden)

    def logprobs(
        self, role: str, input_ids: Tensor, attention_mask: Tensor, response_ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the response tokens, both (batch, response) float32."""
        self._select(role)
        num_response = response_ids.shape[1]
        logits = self.model.get_base_model()(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=position_ids(attention_mask),
            use_cache=False,
            logits_to_keep=num_response + 1,
        ).logits[:, :-1]  # (batch, response, vocabulary)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_entropy):
            entropies = entropy(logits, temperature=temperature, suppress_ids=self.suppress_ids)
        return token_logprobs(logits, response_ids, temperature=temperature, suppress_ids=self.suppress_ids), entropies

    def values(self, input_ids: Tensor, attention_mask: Tensor, num_response: int) -> Tensor:
        """State values before each response token, (batch, response) float32."""
        hidden = self._backbone(CRITIC, input_ids, attention_mask)
        return self.value_head(hidden[:, -num_response - 1 : -1]).squeeze(-1).float()

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalized reward-model scores read at the last real token, (batch,) float32."""
        hidden = self._backbone(REWARD, input_ids, attention_mask)
        steps = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask.long() * steps).argmax(dim=1)
        picked = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        raw = self.score_head(picked).squeeze(-1).float()
        return (raw - self.reward_mean) / self.reward_std

    def forward(self, task: str, **inputs: Any) -> Any:
        """One entry for every pass, so that the engine's hooks see it: task is a method name or ``train``."""
        if task == "train":
            logprobs, entropies = self.logprobs(POLICY, **{k: v for k, v in inputs.items() if k != "want_values"})
            if not inputs.get("want_values"):
                return logprobs, entropies, None
            num_response = inputs["response_ids"].shape[1]
            return (
                logprobs,
                entropies,
                self.values(inputs["input_ids"], inputs["attention_mask"], num_response),
            )
        if task not in ("logprobs", "values", "scores"):
            raise ValueError(f"unknown task {task!r}")
        return getattr(self, task)(**inputs)
