"""Many questions about reduced videos in few padded batches: answers, and the likelihood of given continuations.

Questions may differ in everything: text, clip, method, ratio. Prompts of similar length share a batch; lengths, rows
and the lengths behind cuts inside the language model are rounded up to few sizes, so that a sweep compiles a handful
of programs. Every row keeps its own counts, so that a batch gives what each prompt gives by itself.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.cache import Cache
from jvidprune.errors import JvidpruneError
from jvidprune.llm.generation import AnswerText, Ended, Finish, Generation
from jvidprune.llm.rows import Prompt, Row, Rows, batches, lay_out_rows, power_of_two, read_rows
from jvidprune.llm.stages import StageClock
from jvidprune.models.generate import NO_TOKEN, decode, decode_pieces, lower_decode
from jvidprune.models.prefill import lower_prefill, prefill
from jvidprune.models.sampling import check_sampling, check_stops
from jvidprune.models.score import score
from jvidprune.parallel import on_every_device, on_mesh_of

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

BATCH = 8
"""Prompts that are read together unless the caller says otherwise."""

MIN_FILL = 0.5
"""Padded length of a prompt, as a share of its batch's, below which it waits for a batch of its own."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
      text: what was answered.
      token_ids: generated ids, end of sequence excluded.
      generated: ids generated, end of sequence included.
      kept, visual: visual tokens kept and there were, newlines not counted.
      prompt: prompt length in tokens.
      likeliest: (id, natural-log probability) of the likeliest first tokens of the answer, the first one first; as many
        as were asked for.
      newlines: newline embeddings among the prompt's tokens.
      cached: (layers, tokens of the prompt that each of them has keys and values of) for every stretch of layers, in
        their order; only where it was asked for.
      finish: why the answer ended.
    """

    text: str
    token_ids: tuple[int, ...]
    generated: int
    kept: int
    visual: int
    prompt: int
    likeliest: tuple[tuple[int, float], ...] = ()
    newlines: int = 0
    cached: tuple[tuple[int, int], ...] = ()
    finish: Finish | None = None


@dataclasses.dataclass(frozen=True)
class Score:
    """How likely a model finds a continuation.

    Attributes:
      log_likelihood: sum of the natural-log probabilities of its tokens, float32.
      tokens: how many there are.
      greedy: whether every token is the most probable one in its place.
    """

    log_likelihood: float
    tokens: int
    greedy: bool

    @property
    def mean(self) -> float:
        """Log-likelihood a token."""
        return self.log_likelihood / self.tokens


def answer_many(
    llm: "VideoLLM",
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    batch: int = BATCH,
    min_fill: float = MIN_FILL,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: int | Sequence[int] = 0,
    likeliest: int = 0,
    count_cached: bool = False,
    ends: bool = True,
    clock: StageClock | None = None,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
) -> list[Reply]:
    """Answers many questions; each gets the answer it would get alone.

    Args:
      llm: the model.
      prompts: any mixture; those whose methods act alike inside the language model can share a batch.
      max_new_tokens: longest answer.
      batch: most prompts in a batch; fewer rows are filled up to a power of two with copies of the first.
      min_fill: in [0, 1]; a prompt joins longer ones if its padded length is at least this share of theirs. 0 puts
        everything into as few batches as possible, 1 lets only prompts of one padded length meet.
      temperature: 0 answers greedily, above 0 samples.
      top_p: share of probability that sampling draws from.
      seeds: of sampling, one for all prompts or one each.
      likeliest: first tokens of every answer whose log-probabilities its reply lists, before any temperature.
      count_cached: whether replies say how many tokens of the prompt each layer keeps.
      ends: whether an end of sequence ends an answer; without, every answer is `max_new_tokens` long, by the same
        compiled program, which is how the speed of decoding is measured.
      clock: gets a "prefill" and a "generate" stage for each batch.
      top_k, min_p, repetition_penalty: see `models.sampling.Sampling`.
      stop: texts that end an answer; a batch is then decoded piece by piece, until every row has one.

    Returns:
      One reply for each prompt, in their order.

    Raises:
      JvidpruneError: settings out of range, or a prompt longer than the model's positions; before anything runs.
    """
    sampling = check_sampling(
        max_new_tokens, temperature, top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty
    )
    generation = Generation(max_new_tokens, sampling, check_stops(tuple(stop)))
    seed = _row_seeds(seeds, len(prompts))
    clock = clock or StageClock()
    replies: list[Any] = [None] * len(prompts)
    for rows in batches(llm, prompts, reserve=max_new_tokens, batch=batch, min_fill=min_fill):
        with clock("prefill") as stage:
            logits, cache = jax.block_until_ready(read_rows(llm, rows, max_new_tokens - 1))
            stage.tokens = sum(row.slots.length for row in rows.used)
        # Decoding takes the cache over.
        cached = _cached(llm, cache) if count_cached else [()] * rows.size
        with clock("generate") as stage:
            keys = [jax.random.key(seed[row.number]) for row in rows.used]
            texts = [AnswerText(llm.tokenizer, llm.eos_ids, generation, ends=ends) for _ in rows.used]
            how, given = decoding(llm, rows, logits, generation, keys, ends=ends), (llm.loaded.model, logits, cache)
            # The host looks at an answer on the way only where texts end it.
            pieces = decode_pieces(*given, **how) if generation.stop else iter([decode(*given, **how)])
            for ids, _ in pieces:
                for text, more in zip(texts, np.asarray(ids), strict=False):
                    text.push(more.tolist())
                if all(text.answer.finish is not None for text in texts):
                    break
            first = _likeliest(logits, likeliest) if likeliest else [()] * rows.size
            for row, text, top, held in zip(rows.used, texts, first, cached, strict=False):
                replies[row.number] = reply_of(llm, row, text.answer, top, held)
            stage.tokens = sum(replies[row.number].generated for row in rows.used)
    return replies


def lower_batch(llm: "VideoLLM", prompts: Sequence[Prompt], *, max_new_tokens: int) -> dict[str, Any]:
    """The programs of the one batch that `answer_many(..., batch=len(prompts), min_fill=0)` runs, as JAX lowers them.

    Args:
      llm: the model.
      prompts: those that are read together; their methods act alike inside the language model.
      max_new_tokens: longest answer.

    Returns:
      "prefill" and "generate" -> lowered program. The prompts are read once for the second.

    Raises:
      JvidpruneError: a prompt longer than the model's positions.
    """
    (rows,) = batches(llm, prompts, reserve=max_new_tokens, batch=len(prompts), min_fill=0.0)
    (embeds, positions, valid), capacity, parts = lay_out_rows(llm, rows, max_new_tokens - 1)
    model = llm.loaded.model
    first = lower_prefill(model, embeds, positions, valid, capacity=capacity, **parts)
    logits, cache = prefill(model, embeds, positions, valid, capacity=capacity, **parts)
    then = lower_decode(model, logits, cache, max_new_tokens=max_new_tokens, eos_ids=llm.eos_ids)
    return {"prefill": first, "generate": then}


def score_many(
    llm: "VideoLLM",
    prompts: Sequence[Prompt],
    continuations: Sequence[Sequence[str]],
    *,
    batch: int = BATCH,
    min_fill: float = MIN_FILL,
    clock: StageClock | None = None,
) -> list[list[Score]]:
    """How likely the model finds each of the continuations given for each prompt (multiple choice by likelihood).

    A prompt is read once, whatever the number of its continuations. Nothing is added behind a continuation; write the
    end of sequence into the text to have it counted.

    Args:
      llm: the model.
      prompts: as for `answer_many`.
      continuations: for each prompt its texts, any number of them.
      batch, min_fill: as for `answer_many`.
      clock: gets a "prefill" and a "score" stage for each batch.

    Returns:
      For each prompt its scores, in the order of its continuations.

    Raises:
      JvidpruneError: an empty continuation, or a prompt longer than the model's positions; before anything runs.
    """
    if len(continuations) != len(prompts):
        raise JvidpruneError(f"{len(prompts)} prompts need as many lists of continuations, got {len(continuations)}.")
    texts = [[llm.tokenizer.encode(text) for text in choices] for choices in continuations]
    for choices, ids in zip(continuations, texts, strict=True):
        if empty := [text for text, found in zip(choices, ids, strict=True) if not found]:
            raise JvidpruneError(f"the continuation {empty[0]!r} has no token to score.")
    width = power_of_two(max((len(ids) for choices in texts for ids in choices), default=1))
    clock = clock or StageClock()
    scores: list[list[Score]] = [[] for _ in prompts]
    for rows in batches(llm, prompts, reserve=width, batch=batch, min_fill=min_fill):
        with clock("prefill") as stage:
            logits, cache = jax.block_until_ready(read_rows(llm, rows, width - 1))
            stage.tokens = sum(row.slots.length for row in rows.used)
        with clock("score") as stage:
            for turn in range(max(len(texts[row.number]) for row in rows.used)):
                asked = [(at, row.number) for at, row in enumerate(rows.used) if turn < len(texts[row.number])]
                ids = np.full((rows.size, width), NO_TOKEN, np.int32)
                for at, number in asked:
                    ids[at, : len(texts[number][turn])] = texts[number][turn]
                sums, greedy = (np.asarray(part) for part in score(llm.loaded.model, logits, cache, ids))
                for at, number in asked:
                    scores[number].append(Score(float(sums[at]), len(texts[number][turn]), bool(greedy[at])))
                stage.tokens += sum(scores[number][turn].tokens for _, number in asked)
    return scores


def decoding(
    llm: "VideoLLM",
    rows: Rows,
    logits: jax.Array,
    generation: Generation,
    keys: Sequence[jax.Array],
    *,
    ends: bool = True,
) -> dict[str, Any]:
    """What `decode` and `decode_pieces` are given for a batch, besides model, logits and cache.

    Args:
      llm: the model.
      rows: the batch.
      logits: of its prefill.
      generation: settings; its seed is not read.
      keys: one a prompt.
      ends: whether an end of sequence ends an answer.
    """
    sampling = generation.sampling
    how: dict[str, Any] = {"max_new_tokens": generation.max_new_tokens, "sampling": sampling}
    how["eos_ids"] = llm.eos_ids if ends else (NO_TOKEN,) * len(llm.eos_ids)
    how["key"] = None if sampling.greedy else jnp.stack(rows.filled(list(keys)))
    if sampling.repetition_penalty != 1:
        seen = np.zeros((rows.size, logits.shape[-1]), bool)
        for row, text in zip(seen, rows.filled([row.text for row in rows.used]), strict=True):
            row[text[text < len(row)]] = True
        how["seen"] = seen
    return how


def reply_of(
    llm: "VideoLLM",
    row: Row,
    ended: Ended,
    likeliest: tuple[tuple[int, float], ...] = (),
    cached: tuple[tuple[int, int], ...] = (),
) -> Reply:
    """The reply of a row whose answer is there."""
    answer = tuple(i for i in ended.ids if i not in llm.eos_ids)
    kept, visual = (sum(getattr(one, name) for one in row.videos) for name in ("kept", "visual"))
    length = row.slots.length
    # In the table of a slot map the newline embedding stands behind all text.
    newlines = int((row.slots.source[:length] == len(row.text)).sum())
    counts = (len(ended.ids), kept, visual, length)
    return Reply(ended.text, answer, *counts, likeliest, newlines, cached, ended.finish)


def _cached(llm: "VideoLLM", cache: Cache) -> list[tuple[tuple[int, int], ...]]:
    """(layers, tokens) of every stretch of layers, for each row of a cache that holds prompts alone."""
    masks = [segment.valid for segment in cache.segments]
    if not all(mask.is_fully_addressable for mask in masks):
        with on_mesh_of(llm.loaded.model):
            masks = jax.jit(on_every_device)(masks)
    counts = np.stack([np.asarray(mask).sum(axis=1) for mask in masks], axis=1).tolist()
    layers = [segment.stop - segment.start for segment in cache.segments]
    return [tuple(zip(layers, row, strict=True)) for row in counts]


def _likeliest(logits: jax.Array, count: int) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row of (B, V) logits with their log-probabilities, float32."""
    values, ids = jax.device_get(_top(logits, min(count, logits.shape[-1])))
    return [tuple(zip(row.tolist(), some.tolist(), strict=True)) for row, some in zip(ids, values, strict=True)]


@functools.partial(jax.jit, static_argnums=1)
def _top(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(jax.nn.log_softmax(logits.astype(jnp.float32)), count)


def _row_seeds(seeds: int | Sequence[int], count: int) -> list[int]:
    listed = [seeds] * count if isinstance(seeds, int) else list(seeds)
    if len(listed) != count:
        raise JvidpruneError(f"{count} prompts need one seed or as many, got {len(listed)}.")
    return listed
