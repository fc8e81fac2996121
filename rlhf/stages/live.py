"""Candidates on demand: a process that answers single prompts of the ranking page, without Ray.

    python -m rlhf.stages.live RUN [--temperature T] [--max-response-tokens N] [--threads N]

One JSON object per line in, ``{"text": ..., "count": K, "seed": S}``, one per line out: the prompt as the policy reads
it and its responses in the form the preference store imports, or ``{"error": ...}``. The first line out is
``{"ready": true}``. End of input ends the process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, TextIO

from rlhf.config import ModelConfig, SamplingConfig, derive_seed
from rlhf.data.schema import Message
from rlhf.errors import DataError, RlhfError
from rlhf.models.policy_source import as_trained, resolve_policy
from rlhf.models.positions import prompt_room
from rlhf.rollout.protocol import PromptTask
from rlhf.stages.candidates import Origin
from rlhf.workers.context import WorkerContext
from rlhf.workers.lean import lean_imports


class CandidateSource:
    """One policy that answers single prompts several times."""

    def __init__(self, run: str, sampling: SamplingConfig, *, threads: int = 1) -> None:
        model = ModelConfig(name=run)
        source = resolve_policy(model.name, key="RUN")
        model = as_trained(model, source)
        room = prompt_room(source, model, sampling.max_response_tokens)
        self._room = sampling.max_prompt_tokens if room is None else min(room, sampling.max_prompt_tokens)
        # Late: a run that is not there should be told at once.
        with lean_imports():
            from rlhf.workers.rollout import RolloutWorker

        context = WorkerContext("live", 0, 1, tempfile.gettempdir())
        self._worker = RolloutWorker(context, model, None, microbatch=8, threads=threads, follows_trainer=False)
        self._origin, self._sampling = Origin.of(run), sampling

    def candidates(self, text: str, count: int, seed: int) -> dict[str, Any]:
        """Draws ``count`` responses; equal and unreadable ones are left out.

        Raises:
            DataError: the prompt is longer than the sampling allows, or than the model has positions for.
        """
        chat = self._worker.chat
        prompt = Message("text" if chat.style == "plain" else "user", text)
        ids = tuple(chat.encode_prompt((prompt,)))
        if len(ids) > self._room:
            raise DataError(f"the prompt has {len(ids)} tokens, the limit is {self._room}")
        seeds = [derive_seed(seed, "live", text, k) for k in range(count)]
        rollouts = self._worker.generate([PromptTask(f"live/{s}", ids, s) for s in seeds], self._sampling, 0)
        texts = [chat.decode_response(list(drawn.response_ids)) for drawn in rollouts]
        responses = self._origin.candidates(texts, rollouts, seeds, self._sampling)
        return {"prompt": [prompt.as_dict()], "responses": responses}


def serve(source: CandidateSource, requests: TextIO, answers: TextIO) -> None:
    """Answers line by line until the input ends."""
    _write(answers, {"ready": True})
    for line in requests:
        try:
            wanted = json.loads(line)
            answer = source.candidates(str(wanted["text"]), int(wanted["count"]), int(wanted["seed"]))
        except (KeyError, TypeError, ValueError, RlhfError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        _write(answers, answer)


def _write(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def main(argv: Sequence[str]) -> int:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m rlhf.stages.live", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run directory, model directory or hub id")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-prompt-tokens", type=int, default=1024)
    parser.add_argument("--max-response-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    # Libraries print to standard output; only our lines may stand there.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        sampling = SamplingConfig(
            temperature=args.temperature,
            max_prompt_tokens=args.max_prompt_tokens,
            max_response_tokens=args.max_response_tokens,
        )
        try:
            source = CandidateSource(args.run, sampling, threads=args.threads)
        except RlhfError as error:
            _write(answers, {"error": f"{type(error).__name__}: {error}"})
            return error.exit_code
        serve(source, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
