"""Honest counts of a run: what a ratio really leaves at the language model's input, in its layers, in FLOPs and memory.

A nominal ratio means something else in every method: a share of the tokens before the language model, the share behind
one cut inside it, a mean over its layers, a bound. So each answer is counted anew, from its own prompt:

* tokens at the input: visual ones, and all that the video brings: newline embeddings, vision markers and time stamps;
* the mean of both over the layers, cuts and routed layers counted. Where a cut drops newlines like visual tokens, they
  are taken to go in the same share, which records do not tell;
* FLOPs of the prefill (`costs.flops`), and bytes of keys and values of all layers when the answer has ended, with
  entries in use alone, no padding.

Counts behind cuts are read from the cache, so those that a method decides by the data are what they were. Rules that
also take tokens from the caches of earlier layers (PruneVid), or that leave in the cache what they drop to choose anew
while decoding, are counted by formula.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jvidprune.costs.flops import prompt_segments
from jvidprune.cuts.protocol import CutRule
from jvidprune.evals.metrics import ALL, FULL, Cell
from jvidprune.evals.paired import Run
from jvidprune.evals.store import Record
from jvidprune.llm.batch import Reply
from jvidprune.llm.prompt_cuts import newlines_compete
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.reducers.protocol import Reducer, inner_stages, prompt_rules
from jvidprune.tokens import StageRule

Stretches = Sequence[tuple[int, int]]
"""Numbers of layers, with what each of them has."""

RECORDED = ("newlines", "markers", "layer_tokens", "layer_all", "kv_bytes")
"""What a record of costs holds of these counts, means over the questions of a clip."""

Against = Literal["tokens", "nominal", "tokens_all", "layer_tokens", "layer_all", "prefill_tflops", "kv_bytes"]
"""What accuracies can be drawn against."""


class Axis(NamedTuple):
    """One of the counts, for people.

    Attributes:
      button: a word or two.
      text: what it is a share of, in the unpruned model.
    """

    button: str
    text: str


AXES: Mapping[Against, Axis] = {
    "tokens": Axis("tokens", "visual tokens at the language model's input"),
    "nominal": Axis("nominal ratio", "retention ratio as asked for"),
    "tokens_all": Axis("with newlines and markers", "tokens at the input, newlines and markers of the video counted"),
    "layer_tokens": Axis("a layer", "visual tokens of a layer, mean over the layers"),
    "layer_all": Axis("a layer, with newlines and markers", "tokens of a layer, newlines and markers counted"),
    "prefill_tflops": Axis("prefill FLOPs", "FLOPs of the prefill"),
    "kv_bytes": Axis("KV bytes", "bytes of keys and values at the end of an answer"),
}
"""In the order of the report's switch; the first is shown unless another is asked for."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one method at one ratio really used, means over questions; NaN where records do not say.

    Attributes:
      method: name.
      nominal: ratio that was asked for, 0 for the question alone.
      tokens: visual tokens at the language model's input, newlines left out.
      tokens_all: the same with newline embeddings, vision markers and time stamps.
      layer_tokens, layer_all: both, mean over the layers.
      prefill_tflops: 10^12 FLOPs of the prefill.
      kv_bytes: of keys and values when the answer has ended.
    """

    method: str
    nominal: float
    tokens: float
    tokens_all: float
    layer_tokens: float
    layer_all: float
    prefill_tflops: float
    kv_bytes: float

    def value(self, against: Against) -> float:
        """One of them by its name in `AXES`."""
        return float(getattr(self, against))


def count_replies(llm: VideoLLM, reducer: Reducer, ratio: float, asked: Sequence[tuple[str, Reply]]) -> dict[str, Any]:
    """The counts of a clip's answers under one method and ratio, for its record (`RECORDED`).

    Args:
      llm: the model.
      reducer: the method.
      ratio: what it was asked for.
      asked: questions with replies that say what is cached.
    """
    config = llm.loaded.config
    acting = [stage for stage in inner_stages(reducer, ratio) if stage.boundary < config.text.layers]
    competes = newlines_compete(acting, prompt_rules(reducer).newline_layout(llm.newline))
    entry = 2 * config.text.kv_heads * config.text.head_dim * llm.loaded.dtype.itemsize
    rows = []
    for question, reply in asked:
        visual = reply.kept + reply.newlines
        text = reply.prompt - visual
        # Tokenizers may join a marker with a word: markers are what a prompt has more than its words.
        markers = max(0, text - sum(len(llm.tokenizer.encode(part)) for part in llm.prompts.texts(question)))
        read, cached = stretches(config, reducer, ratio, reply)
        mean = sum(count * max(0, tokens - text) for count, tokens in read) / config.text.layers
        alone = mean * reply.kept / max(1, visual) if competes else max(0.0, mean - reply.newlines)
        entries = sum(count * (tokens + reply.generated - 1) for count, tokens in cached)
        rows.append((reply.newlines, markers, alone, mean + markers, entry * entries))
    means = (math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
    return dict(zip(RECORDED, means, strict=True))


def stretches(config: Any, reducer: Reducer, ratio: float, reply: Reply) -> tuple[Stretches, Stretches]:
    """(layers, tokens that each of them reads), and (layers, tokens that it caches), of one prompt.

    Args:
      config: of the model.
      reducer: the method.
      ratio: what it was asked for.
      reply: that says what is cached.
    """
    stages = [stage for stage in inner_stages(reducer, ratio) if stage.boundary < config.text.layers]
    if not any(stage.rule.trims or _hides(stage.rule) for stage in stages):
        return reply.cached, _with_keys(config.text, reply.cached)
    sizes = {"kept": reply.kept, "newlines": reply.newlines, "prompt": reply.prompt}
    parts = prompt_segments(config, reducer, ratio, **sizes)
    read = tuple((part.stop - part.start, part.tokens) for part in parts)
    return read, _with_keys(config.text, tuple((part.stop - part.start, part.cached) for part in parts))


def _with_keys(text: DecoderConfig, parts: Stretches) -> Stretches:
    """Stretches of layers in their order, of which only those with keys and values count."""
    found, start = [], 0
    for count, tokens in parts:
        found.append((text.attending_in(start, start + count), tokens))
        start += count
    return tuple(found)


def _hides(rule: StageRule) -> bool:
    """Whether what a cut drops stays cached, to be chosen again while decoding."""
    return isinstance(rule, CutRule) and rule.renewal is not None and rule.renewal.mode != "fill"


def counts_of(
    samples: Sequence[Record], batches: Sequence[Record], cells: Mapping[tuple[str, float, str], Cell]
) -> dict[Run, Counts]:
    """What every run of a sweep really used, by method and ratio, the baselines included.

    Args:
      samples: answers; those of a clip weigh its record of costs.
      batches: records of costs; older ones lack what this version counts.
      cells: accuracies by (method, ratio, category), whose `kept` is the mean at the input.
    """
    asked: dict[tuple[str, float, str], int] = {}
    for record in samples:
        key = record["method"], record["ratio"], record["clip"]
        asked[key] = asked.get(key, 0) + 1
    found: dict[Run, list[tuple[int, Record]]] = {}
    for record in batches:
        weight = asked.get((record["method"], record["ratio"], record["clip"]), 0)
        if weight and not record["refused"]:
            found.setdefault((record["method"], record["ratio"]), []).append((weight, record))

    def mean(rows: Sequence[tuple[int, Record]], name: str) -> float:
        if not rows or any(name not in record for _, record in rows):
            return math.nan
        weights, values = zip(*((weight, record[name]) for weight, record in rows), strict=True)
        return float(np.average(values, weights=weights))

    out = {}
    for (method, ratio, category), cell in cells.items():
        if category == ALL:
            rows = found.get((method, ratio), [])
            means = {name: mean(rows, name) for name in (*RECORDED, "prefill_tflops")}
            around = means.pop("newlines") + means.pop("markers")
            out[method, ratio] = Counts(method, ratio, cell.kept, cell.kept + around, **means)
    return out


def share(found: Mapping[Run, Counts], run: Run, against: Against) -> float:
    """A count of a run as a share of the unpruned model's; NaN where either is not known."""
    if against == "nominal":
        return run[1]
    one, full = found.get(run), found.get((FULL, 1.0))
    if one is None or full is None or not full.value(against) > 0:
        return math.nan
    return one.value(against) / full.value(against)


def known_axes(found: Mapping[Run, Counts]) -> list[Against]:
    """What the accuracies of a run can be drawn against: whatever is known of all its methods."""
    return [name for name in AXES if found and not any(math.isnan(share(found, run, name)) for run in found)]


COUNTS_HEAD = (
    *("method", "nominal", "tokens", "with newlines, markers", "a layer", "with newlines, markers"),
    *("prefill TFLOP", "KV MiB"),
)
"""What `counts_row` says."""


def counts_row(one: Counts, name: str) -> list[str]:
    """The counts of a run as texts under `COUNTS_HEAD`."""
    numbers = [one.tokens, one.tokens_all, one.layer_tokens, one.layer_all]
    texts = ["–" if math.isnan(value) else f"{value:,.1f}" for value in numbers]
    flops = "–" if math.isnan(one.prefill_tflops) else f"{one.prefill_tflops:,.4g}"
    memory = "–" if math.isnan(one.kv_bytes) else f"{one.kv_bytes / 2**20:,.4g}"
    return [name, f"{100 * one.nominal:g} %", *texts, flops, memory]
