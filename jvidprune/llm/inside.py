"""What a method does inside the language model to one prompt: which visual tokens each stretch of layers holds.

`trace` reads a prompt once with the records of its stages: cuts say which tokens stay or come back, routed layers which
ones they run on, and a choice that is renewed while decoding says so at every step of the answer.
"""

import functools
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jvidprune.cuts.cut import CutRecord
from jvidprune.cuts.reselection import Reselection
from jvidprune.errors import JvidpruneError
from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.rows import Prompt, laid_out
from jvidprune.models.prefill import read_prompt
from jvidprune.parallel import on_mesh_of

if TYPE_CHECKING:
    from jvidprune.llm.video_llm import VideoLLM

StageKind = Literal["layers", "routed", "token"]
"""A stretch of layers between cuts, one layer that some tokens pass by, or the deep layers at one step of an answer."""

STEPS = 8
"""Steps of an answer that are followed where the choice is renewed."""


class InsideStage(NamedTuple):
    """The visual tokens of a video in one stretch of layers.

    Attributes:
      name: for people, with layers counted from 0.
      kind: see `StageKind`.
      kept: (T * N,) tokens that are there; of a routed layer those that it runs on.
      restored: (T * N,) of these, the ones that were not there in the stretch, or at the step, before.
      row: (T * N,) int32 the token that a dropped one travels in as part of a mean, itself included, -1 for none.
    """

    name: str
    kind: StageKind
    kept: Bool[np.ndarray, "M"]
    restored: Bool[np.ndarray, "M"]
    row: Int[np.ndarray, "M"]


def trace(llm: "VideoLLM", video: ReducedVideo, question: str, *, steps: int = STEPS) -> list[InsideStage]:
    """The stages of one prompt in the order that a token meets them, the layers before the first cut first.

    Tokens that were merged before the language model stand under the id of their row.

    Args:
      llm: the model.
      video: reduced by a method with stages inside the language model.
      question: that is asked about it.
      steps: of the answer that are followed where the choice is renewed while decoding.

    Raises:
      JvidpruneError: a method without a stage that acts in this model, or a prompt longer than the model's positions.
    """
    layers = llm.loaded.config.text.layers
    if video.beside:
        raise JvidpruneError("stages are followed on videos, not yet on pictures of several maps.")
    if not any(stage.boundary < layers for stage in video.inner):
        raise JvidpruneError(f"{video.title} does nothing inside the {layers} layers of this language model.")
    laid, (embeds, positions, valid), capacity, parts = laid_out(llm, Prompt(video, question), steps)
    inner, model = parts.get("inner"), llm.loaded.model
    if inner is None:
        raise JvidpruneError(f"{video.title} does nothing to this prompt inside the language model.")
    with on_mesh_of(model) as mesh:
        slots = inner.capacities(embeds.shape[1], capacity - embeds.shape[1])
        cache = model.lm.empty_cache(1, slots, inner.boundaries, mesh=mesh)
        logits, cache, cuts, routes = _read(model, embeds, positions, valid, cache, parts)
    place = _Places(np.asarray(laid), np.asarray(video.reduced.index), video.video.tokens.layout().total)
    edges = [cut.boundary for cut in inner.cuts]
    whole = place.mask(np.arange(len(place.of_slot)), np.ones(len(place.of_slot), bool))
    found = []
    if len(inner.routes) < layers and 0 not in edges:
        first = "layers that are not routed" if inner.routes and not edges else _span(0, [*edges, layers][0])
        found.append((-1, _stage(first, "layers", whole, whole, place)))
    before = whole
    for number, (cut, record) in enumerate(zip(inner.cuts, cuts, strict=True)):
        kept = place.mask(record.source[0], record.survivors[0])
        name = _span(cut.boundary, [*edges[number + 1 :], layers][0])
        stage = _stage(name, "layers", kept, before, place)
        found.append((cut.boundary, stage._replace(row=_travelling(record, place))))
        before = kept
    for route, (runs, source) in zip(inner.routes, routes, strict=True):
        kept = place.mask(source[0], runs[0])
        found.append((route.layer, _stage(f"layer {route.layer}", "routed", kept, kept, place)))
    stages = [stage for _, stage in sorted(found, key=lambda one: one[0])]
    if isinstance(cache.policy, Reselection):
        stages += _answer(llm, logits, cache, place, before, steps)
    return stages


def _stage(name: str, kind: StageKind, kept: Any, before: Any, place: "_Places") -> InsideStage:
    return InsideStage(name, kind, kept, kept & ~before, np.where(kept, np.arange(place.total), -1))


def _span(start: int, stop: int) -> str:
    return f"layer {start}" if stop == start + 1 else f"layers {start} to {stop - 1}"


class _Places:
    """Which token of the video each slot of the prompt holds."""

    def __init__(self, row: np.ndarray, index: np.ndarray, total: int):
        self.total = total
        self.of_slot = np.where(row >= 0, index[np.maximum(row, 0)], total)

    def mask(self, source: Any, there: Any) -> np.ndarray:
        """(T * N,) tokens in some slots."""
        found = np.zeros(self.total + 1, bool)
        found[self.of_slot[np.asarray(source)[np.asarray(there)]]] = True
        return found[:-1]


def _travelling(record: CutRecord, place: _Places) -> np.ndarray:
    """The `row` of a cut whose rule says which groups its dropped tokens make (SwiftVLM)."""
    source, kept = np.asarray(record.source[0]), np.asarray(record.survivors[0])
    tokens = place.of_slot[source]
    row = np.full(place.total + 1, -1)
    row[tokens[kept]] = tokens[kept]
    shown = record.diagnostics or {}
    if {"group", "merged"} <= shown.keys():
        group, seed = np.asarray(shown["group"][0]), np.asarray(shown["merged"][0])
        of_group = dict(zip(group[seed].tolist(), tokens[seed].tolist(), strict=True))
        for token, number in zip(tokens.tolist(), group.tolist(), strict=True):
            if number in of_group:
                row[token] = of_group[number]
    return row[:-1]


def _answer(
    llm: "VideoLLM", logits: Any, cache: Any, place: _Places, before: np.ndarray, steps: int
) -> list[InsideStage]:
    """The choice of each step of a greedy answer, up to its end."""
    found, slots = [], np.arange(len(place.of_slot))
    for number in range(steps):
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if int(token[0]) in llm.eos_ids:
            break
        logits, cache = _step(llm.loaded.model, token, cache)
        active = np.asarray(cache.policy.active[0])[: len(slots)]
        kept = place.mask(slots, active)
        deep = _span(cache.policy.layer, llm.loaded.config.text.layers)
        found.append(_stage(f"token {number + 1} of the answer, {deep}", "token", kept, before, place))
        before = kept
    return found


@jax.jit
def _read(model: Any, embeds: Any, positions: Any, valid: Any, cache: Any, parts: Any) -> Any:
    read = read_prompt(model.lm, embeds, positions, valid, cache, **parts)
    return read.logits, read.cache, read.cuts, [(route.runs, route.source) for route in read.routes]


@functools.partial(jax.jit, donate_argnames="cache")
def _step(model: Any, token: Any, cache: Any) -> Any:
    return model.lm.decode(token, cache)
