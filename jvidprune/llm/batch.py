"""Many questions about reduced videos in few padded batches: answers, and the likelihood of given continuations.

Questions may differ in everything: text, clip, method, ratio. Prompts of similar length share a batch; lengths, rows
and the lengths behind cuts inside the language model are rounded up to few sizes, so that a sweep compiles a handful
of programs. Every row keeps its own counts, so that a batch gives what each prompt gives by itself.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jvidprune.cuts.cache import Cache
from jvidprune.errors import JvidpruneError
from jvidprune.llm.deepstack import kept_levels
from jvidprune.llm.encoded import ReducedVideo, shared_blocks, shared_frames, shared_places, shared_stages
from jvidprune.llm.prompt_cuts import join_inner, prompt_inner
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.llm.stages import StageClock
from jvidprune.models.generate import NO_TOKEN, check_sampling, decode, lower_decode
from jvidprune.models.prefill import PromptParts, lower_prefill, prefill
from jvidprune.models.score import score
from jvidprune.ops.newline import NewlineKind
from jvidprune.parallel import on_every_device, on_mesh_of
from jvidprune.tokens import InnerStage

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

BATCH = 8
"""Prompts that are read together unless the caller says otherwise."""

MIN_FILL = 0.5
"""Padded length of a prompt, as a share of its batch's, below which it waits for a batch of its own."""

_NEWLINE, _TEXT = -1, -2
"""What stands in a slot that holds no reduced token."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One question about one reduced video, or several.

    Attributes:
      video: what `VideoLLM.reduce` or `reduced.sweep_video` made of a video; or several, in the order of the prompt.
      question: text.
    """

    video: ReducedVideo | Sequence[ReducedVideo]
    question: str

    @property
    def videos(self) -> list[ReducedVideo]:
        """All of them."""
        return [self.video] if isinstance(self.video, ReducedVideo) else list(self.video)


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

    Returns:
      One reply for each prompt, in their order.

    Raises:
      JvidpruneError: settings out of range, or a prompt longer than the model's positions; before anything runs.
    """
    check_sampling(max_new_tokens, temperature, top_p)
    seed = _row_seeds(seeds, len(prompts))
    clock = clock or StageClock()
    replies: list[Any] = [None] * len(prompts)
    for rows in _batches(llm, prompts, reserve=max_new_tokens, batch=batch, min_fill=min_fill):
        with clock("prefill") as stage:
            logits, cache = jax.block_until_ready(_read(llm, rows, max_new_tokens - 1))
            stage.tokens = sum(row.slots.length for row in rows.used)
        # Decoding takes the cache over.
        cached = _cached(llm, cache) if count_cached else [()] * rows.size
        with clock("generate") as stage:
            keys = rows.filled([jax.random.key(seed[row.number]) for row in rows.used]) if temperature > 0 else []
            found, _ = decode(
                llm.loaded.model,
                logits,
                cache,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                eos_ids=llm.eos_ids if ends else (NO_TOKEN,) * len(llm.eos_ids),
                key=jnp.stack(keys) if keys else None,
            )
            first = _likeliest(logits, likeliest) if likeliest else [()] * rows.size
            for row, ids, top, held in zip(rows.used, np.asarray(found), first, cached, strict=False):
                replies[row.number] = _reply(llm, row, [int(i) for i in ids if i >= 0], top, held)
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
    (rows,) = _batches(llm, prompts, reserve=max_new_tokens, batch=len(prompts), min_fill=0.0)
    (embeds, positions, valid), capacity, parts = _laid_out(llm, rows, max_new_tokens - 1)
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
    width = _power(max((len(ids) for choices in texts for ids in choices), default=1))
    clock = clock or StageClock()
    scores: list[list[Score]] = [[] for _ in prompts]
    for rows in _batches(llm, prompts, reserve=width, batch=batch, min_fill=min_fill):
        with clock("prefill") as stage:
            logits, cache = jax.block_until_ready(_read(llm, rows, width - 1))
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


class _Row(NamedTuple):
    """A prompt laid out: its place among the prompts, its videos, slots and text ids."""

    number: int
    videos: list[ReducedVideo]
    slots: SlotMap
    text: np.ndarray

    @property
    def size(self) -> int:
        return len(self.slots.source)


class _Rows(NamedTuple):
    """A batch: the prompts in it, the longest first, and the number of rows, fillers included."""

    used: list[_Row]
    size: int

    def filled(self, parts: list[Any]) -> list[Any]:
        """One part for each row: those of the prompts, then the first one's again."""
        return parts + parts[:1] * (self.size - len(parts))


def _batches(
    llm: "VideoLLM", prompts: Sequence[Prompt], *, reserve: int, batch: int, min_fill: float
) -> Iterator[_Rows]:
    if batch < 1:
        raise JvidpruneError(f"a batch has at least 1 prompt, got {batch}.")
    if not 0 <= min_fill <= 1:
        raise JvidpruneError(f"min_fill must lie in [0, 1], got {min_fill}.")
    groups: dict[Any, list[_Row]] = {}
    for number, prompt in enumerate(prompts):
        videos = prompt.videos
        stages = _alike(shared_stages(videos), llm.loaded.config.text.layers)
        row = _Row(number, videos, *llm.lay_out(videos, prompt.question, reserve))
        groups.setdefault(stages, []).append(row)
    made = []
    for group in groups.values():
        waiting = sorted(group, key=lambda row: -row.size)
        while waiting:
            used = [row for row in waiting[:batch] if row.size >= min_fill * waiting[0].size]
            made.append(_Rows(used, min(batch, _power(len(used)))))
            waiting = waiting[len(used) :]
    return iter(made)


def _alike(stages: Sequence[InnerStage], layers: int) -> Any:
    """What prompts of one batch must have in common: layers, rules and positions, not the shares kept."""
    return tuple(stage.shared for stage in stages if stage.boundary < layers)


def _read(llm: "VideoLLM", rows: _Rows, room: int) -> tuple[jax.Array, Cache]:
    """Prefill of a batch: (B, V) logits and a cache with room for more tokens."""
    (embeds, positions, valid), capacity, parts = _laid_out(llm, rows, room)
    return prefill(llm.loaded.model, embeds, positions, valid, capacity=capacity, **parts)


def laid_out(
    llm: "VideoLLM", prompt: Prompt, room: int
) -> tuple[Int[np.ndarray, "S"], tuple[jax.Array, np.ndarray, np.ndarray], int, PromptParts]:
    """One prompt as `prefill` is given it.

    Args:
      llm: the model.
      prompt: the prompt.
      room: tokens that will follow it.

    Returns:
      The row of the videos' reduced tokens that each slot holds, negative for text and newlines; embeddings, positions
      and valid slots; slots of the cache; all else.
    """
    (rows,) = _batches(llm, [prompt], reserve=room, batch=1, min_fill=0.0)
    (row,) = rows.used
    return row.slots.source - len(row.text) - 1, *_laid_out(llm, rows, room)


def _laid_out(
    llm: "VideoLLM", rows: _Rows, room: int
) -> tuple[tuple[jax.Array, np.ndarray, np.ndarray], int, PromptParts]:
    """What `prefill` is given for a batch: embeddings, positions and valid slots; the cache's slots; all else."""
    model, layers = llm.loaded.model, llm.loaded.config.text.layers
    width = rows.used[0].size
    embeds, inners, levels, slots, mutual = [], [], [], [], []
    for row in rows.used:
        videos, count = row.videos, len(row.text)
        wide = row.slots.widened(width)
        at = wide.source - count - 1
        ids = np.where(at < _NEWLINE, row.text[np.minimum(wide.source, count - 1)], 0).astype(np.int32)
        held = np.where(wide.valid, np.maximum(at, _TEXT), _TEXT).astype(np.int32)
        slots.append(wide)
        embeds.append(_embed(model, ids, held, [one.reduced.tokens for one in videos]))
        levels.append(kept_levels(videos, wide, count))
        mutual.append(llm.prompts.bidirectional(wide, row.text))
        # The first video's layout decides which newlines compete at a cut.
        newline = videos[0].rules.newline_layout(llm.newline)
        group = _groups(videos, newline)
        found = prompt_inner(videos[0].inner, wide, count, newline=newline, layers=layers, block=group)
        inners.append(found)
    slots = rows.filled(slots)
    following = [one.length if one.next_position is None else one.next_position for one in slots]
    parts: PromptParts = {"next_position": np.asarray(following, np.int32)}
    if inners[0] is not None:
        parts["inner"] = join_inner(rows.filled(inners))
    if mutual[0] is not None:
        parts["bidirectional"] = np.stack(rows.filled(mutual))
    if levels[0] is not None:
        parts["deepstack"] = jnp.concatenate(rows.filled(levels), axis=1)
    positions = np.concatenate([one.rotary for one in slots], axis=-2)
    valid = np.stack([one.valid for one in slots])
    return (jnp.stack(rows.filled(embeds)), positions, valid), width + room, parts


def _groups(videos: Sequence[ReducedVideo], newline: NewlineKind) -> np.ndarray | None:
    """What the stages inside the model count in: frames, places in a frame, or the blocks of the plans."""
    rules = [stage.rule for stage in videos[0].inner]
    if any(rule.by_frame for rule in rules):
        return shared_frames(videos)
    return shared_places(videos, newline) if any(rule.by_place for rule in rules) else shared_blocks(videos)


@jax.jit
def _embed(model: Any, ids: jax.Array, held: jax.Array, parts: list[jax.Array]) -> jax.Array:
    """(S, D) embeddings of a prompt's slots: text ids, or what they hold of the reduced tokens of its videos."""
    tokens = model.embed_visual(jnp.concatenate(parts))
    words = model.embed_text(ids)
    if model.newline is not None:
        words = jnp.where((held == _NEWLINE)[:, None], model.newline.astype(words.dtype), words)
    return jnp.where((held >= 0)[:, None], tokens[jnp.maximum(held, 0)].astype(words.dtype), words)


def _reply(
    llm: "VideoLLM",
    row: _Row,
    ids: list[int],
    likeliest: tuple[tuple[int, float], ...],
    cached: tuple[tuple[int, int], ...],
) -> Reply:
    answer = tuple(i for i in ids if i not in llm.eos_ids)
    kept, visual = (sum(getattr(one, name) for one in row.videos) for name in ("kept", "visual"))
    text, length = llm.tokenizer.decode(answer).strip(), row.slots.length
    # In the table of a slot map the newline embedding stands behind all text.
    newlines = int((row.slots.source[:length] == len(row.text)).sum())
    return Reply(text, answer, len(ids), kept, visual, length, likeliest, newlines, cached)


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


def _power(count: int) -> int:
    """The smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()
