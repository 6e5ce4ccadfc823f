"""Prompts whose video was reduced inside the step: as many slots as a reducer has rows, of which some stay empty."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.evals.items import Item
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.reducers.prompt_rules import position_rule
from jvidprune.reducers.protocol import Reducer, prompt_rules
from jvidprune.training.data import NEWLINE, ExampleEncoder, PackedRows, pack
from jvidprune.training.inside import answer_logits
from jvidprune.training.loss import own_positions, read_rows


@dataclasses.dataclass(frozen=True)
class ReducedPrompts:
    """The questions about clips as rows, with room for K visual tokens.

    Attributes:
      llm: model, tokenizer and settings.
      frames: of a clip.
      kept: K.
      text: most slots of everything else.
      answers: A, most predicted tokens of a row.
      original: whether tokens keep the positions of the unpruned prompt.
    """

    llm: VideoLLM
    frames: int
    kept: int
    text: int
    answers: int
    original: bool

    @classmethod
    def of(cls, llm: VideoLLM, items: Sequence[Item], reducer: Reducer, frames: int, kept: int) -> "ReducedPrompts":
        """Rows that hold every question about these clips.

        Raises:
          JvidpruneError: a family whose prompts are no such rows, clips without questions, or a prompt longer than the
            model's positions.
        """
        encode = ExampleEncoder(llm, frames, kept, 1 << 30, 1 << 30)
        if any(not item.questions for item in items):
            raise JvidpruneError("there is nothing to answer about clips without questions: learn from reconstruction.")
        found = [encode.tokens(item) for item in items]
        longest = max(len(example["ids"]) for example in found)
        limit = llm.loaded.config.text.max_positions
        if longest > limit:
            raise JvidpruneError(
                f"a clip with its questions takes {longest} slots, but the model has {limit} positions."
            )
        known = llm.settings
        rule = position_rule(
            [prompt_rules(reducer)],
            asked=known.positions,
            declared=known.declared_positions,
            reference=known.reference_positions,
        )
        answers = max(len(example["slot"]) for example in found)
        return cls(llm, frames, kept, longest - kept, answers, rule == "original")

    def unpruned(self, whole: int) -> "ReducedPrompts":
        """The same rows with room for all tokens of a clip."""
        return dataclasses.replace(self, kept=whole)

    def rows(self, items: Sequence[Item]) -> PackedRows:
        """A row for each clip, without pixels; the same questions in the same places whatever K is."""
        slots = self.kept + self.text
        encode = ExampleEncoder(self.llm, self.frames, self.kept, slots, self.answers)
        parts: dict[str, np.ndarray] = {"pixels": np.zeros((len(items), 1, 0), np.float32)}
        parts["pixels_segment_ids"] = np.ones((len(items), 1), np.int32)
        sizes = dict.fromkeys(("ids", "visual", "branch", "position"), slots)
        sizes |= dict.fromkeys(("slot", "target", "judged", "question"), self.answers)
        for name, size in sizes.items():
            parts[name] = np.zeros((len(items), size), np.int32)
        for name in ("ids", "slot"):
            parts[f"{name}_segment_ids"] = np.zeros(parts[name].shape, np.int32)
        for row, item in enumerate(items):
            example = encode.tokens(item)
            for name, values in example.items():
                parts[name][row, : len(values)] = values
            for name in ("ids", "slot"):
                parts[f"{name}_segment_ids"][row, : len(example[name])] = 1
        return pack(parts, self.kept)


def fill_rows(
    rows: PackedRows, index: Int[Array, "R K"], valid: Bool[Array, "R K"], whole: int, *, original: bool
) -> PackedRows:
    """Rows whose visual slots beyond what is valid are empty, with the positions of what is there.

    Args:
      rows: from `ReducedPrompts.rows`.
      index: place of each visual token among the `whole` ones of its clip.
      valid: a prefix of the K visual tokens.
      whole: visual tokens of a clip unpruned.
      original: keep the positions of the unpruned prompt; else everything counts anew.
    """
    kept = index.shape[1]
    number = jnp.maximum(rows.visual, 0)
    there = (rows.visual < 0) | jnp.take_along_axis(valid, number, axis=1)
    segment = jnp.where(there, rows.segment, 0)
    if original:
        return rows._replace(segment=segment, position=own_positions(rows, index, kept, whole))  # pyright: ignore[reportArgumentType]
    behind = (rows.branch > 0) | (rows.visual == NEWLINE)
    fewer = kept - valid.sum(axis=1, keepdims=True)
    return rows._replace(segment=segment, position=jnp.asarray(rows.position) - jnp.where(behind, fewer, 0))


def said(model: Any, tokens: Float[Array, "R K D"], rows: PackedRows) -> Float[Array, "R A V"]:
    """Logits of every predicted token, given the right ones before."""
    return answer_logits(model, read_rows(model, tokens, rows), rows)


def divergence(whole: Float[Array, "R A V"], reduced: Float[Array, "R A V"], rows: PackedRows) -> Float[Array, ""]:
    """KL(unpruned || reduced) in nats a predicted token."""
    right, found = (jax.nn.log_softmax(logits, axis=-1) for logits in (whole, reduced))
    return (rows.weight * (jnp.exp(right) * (right - found)).sum(axis=-1)).sum()
