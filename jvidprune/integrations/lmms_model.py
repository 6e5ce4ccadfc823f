"""The model class that lmms-eval builds for `--model jvidprune`; imported by lmms-eval alone, which brings PyTorch."""

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from lmms_eval.api.instance import GenerationResult, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from jvidprune.errors import JvidpruneError
from jvidprune.integrations.lmms_args import ModelArgs
from jvidprune.integrations.lmms_requests import Adapter, Responses


class _Pair(tuple):
    """A (value, greedy) pair that lmms-eval's response cache takes for an empty answer and leaves out.

    What it reads back from that cache would reach the task as text; `ModelArgs.resume` keeps likelihoods.
    """

    def strip(self) -> str:
        """Nothing."""
        return ""


class JvidpruneModel(lmms):
    """A video LLM with a reducer under lmms-eval; JAX computes, PyTorch only carries what lmms-eval gathers.

    `lmms_eval --model jvidprune --model_args pretrained=FOLDER,reducer=aot,ratio=0.1,max_frames_num=32 --tasks ...`;
    see `lmms_args.ModelArgs` for all arguments.
    """

    is_simple = True

    def __init__(self, **given: Any):
        super().__init__()
        self.adapter = Adapter(ModelArgs.read(given))

    @property
    def device(self) -> Any:
        """Where lmms-eval puts the counts it gathers from several processes."""
        return torch.device("cpu")

    @property
    def batch_size(self) -> int:
        """Prompts that are read together."""
        return self.adapter.args.batch_size

    def generate_until(self, requests: list[Any]) -> Any:
        """Answers with the lengths of prompts and answers in tokens, made while they are read."""
        answers = self.adapter.generate(requests, self.task_dict, self._bar(len(requests)))
        made = (
            GenerationResult(one.text, TokenCounts(input_tokens=one.prompt, output_tokens=one.generated))
            for one in answers
        )
        return Responses(made, len(requests))

    def loglikelihood(self, requests: list[Any]) -> Any:
        """(value, greedy) of each continuation; `ModelArgs.likelihood` says which value.

        The pairs are wrapped, since lmms-eval 0.7 turns a bare pair into text before its tasks read it.
        """
        found = self.adapter.likelihoods(requests, self.task_dict, self._bar(len(requests)))
        return Responses((GenerationResult(_Pair(pair)) for pair in found), len(requests))

    def generate_until_multi_round(self, requests: list[Any]) -> Any:
        """Refused."""
        raise JvidpruneError("tasks of several rounds are not supported; jvidprune answers one question at a time.")

    def _bar(self, total: int) -> Any:
        return tqdm(total=total, desc="jvidprune", disable=self.rank != 0).update
