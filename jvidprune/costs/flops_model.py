"""FLOPs of the models' parts from their configs: towers, projectors and mergers, prefill between cuts, decoding.

A multiplication and an addition are two FLOPs. Matrix products alone are counted, which is nearly all there is: norms,
activations, rotary embeddings and softmax are a few per cent at tiny widths and less at published ones.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jvidprune.cuts.protocol import AHEAD, CutRule
from jvidprune.cuts.routing import RouteRule
from jvidprune.models import family as families
from jvidprune.models.decoder_config import DecoderConfig, DeltaConfig
from jvidprune.models.delta import CHUNK
from jvidprune.models.internvl.tower import InternVitConfig
from jvidprune.models.qwen.tower import QwenVisionConfig
from jvidprune.models.siglip import SiglipConfig
from jvidprune.reducers.counting import Terms
from jvidprune.tokens import InnerStage, Layout


class Segment(NamedTuple):
    """A stretch of decoder layers between two cuts, or one routed layer.

    Attributes:
      start, stop: layers [start, stop).
      tokens: of the prompt that these layers read, text included.
      visual: of those, the tokens that compete at cuts.
      cached: entries that the cache of these layers holds behind the prefill.
      keys_ahead: tokens in front of the cut before these layers whose keys in layer `start` the cut's rule wants, and
        which the layer makes again of the tokens that stay.
      queries_ahead: of those, the tokens whose queries it wants.
      unfed: tokens that a cut inside layer `stop` - 1 keeps from its MLP.
      again: whether a decoding step runs these layers anew over all tokens.
    """

    start: int
    stop: int
    tokens: int
    visual: int
    cached: int
    keys_ahead: int = 0
    queries_ahead: int = 0
    unfed: int = 0
    again: bool = False


def segments(stages: Sequence[InnerStage], layers: int, *, tokens: int, visual: int) -> tuple[Segment, ...]:
    """How many tokens each stretch of layers reads; counts are those of `Inner.create` for one prompt.

    A rule that keeps a share of every block keeps at most what is counted here. A decoding stage cuts nothing. A routed
    layer reads the tokens that run; rules that count in frames count as if there were one, which rounding alone tells.

    Args:
      stages: of the reducer, in any order; those at or behind the last layer do nothing.
      layers: decoder layers.
      tokens: of the prompt.
      visual: of those, the tokens that compete.
    """
    cuts = [s for s in stages if s.boundary < layers and s.rule.cuts]
    found, start, prompt, text, ahead = [], 0, visual, tokens - visual, (0, 0)
    aside: int | None = None
    again = False
    for stage in sorted(cuts, key=lambda s: s.boundary):
        rule = stage.rule if isinstance(stage.rule, CutRule) else CutRule(trims=stage.rule.trims)
        back = aside if rule.brings_back and aside is not None else visual
        kept = stage.kept.left(back, prompt, text)
        if rule.renewal is not None and rule.renewal.mode != "fill":
            # Deep layers run on all tokens and cache them.
            kept = back
        if stage.boundary > start:
            unfed = visual - kept if stage.where == "middle" else 0
            found.append(Segment(start, stage.boundary, tokens, visual, tokens, *ahead, unfed, again))
        again = again or (rule.renewal is not None and rule.renewal.mode == "recompute")
        # What a rule brings back is ranked too.
        tokens, visual = tokens - visual + back, back
        aside = None if rule.brings_back else aside
        aside = visual if rule.keeps_roles and aside is None else aside
        ahead = (tokens, 1 if rule.probe == "ahead" else tokens - visual) if rule.probe in AHEAD else (0, 0)
        tokens, visual, start = tokens - visual + kept, kept, stage.boundary
        if rule.trims:
            found = [s._replace(cached=tokens) for s in found]
    found.append(Segment(start, layers, tokens, visual, tokens, *ahead, 0, again))
    for stage in stages:
        if isinstance(stage.rule, RouteRule) and stage.layer < layers:
            found = [piece for one in found for piece in _routed(one, stage, prompt, text)]
    return tuple(found)


def _routed(part: Segment, stage: InnerStage, prompt: int, text: int) -> list[Segment]:
    """A stretch with one of its layers apart, if it holds it."""
    at = stage.layer
    if not part.start <= at < part.stop:
        return [part]
    kept = stage.kept.left(part.visual, prompt, text)
    tokens = part.tokens - part.visual + kept
    inside = part._replace(start=at, stop=at + 1, tokens=tokens, visual=kept, cached=tokens)
    before, behind = part._replace(stop=at, unfed=0), part._replace(start=at + 1, keys_ahead=0, queries_ahead=0)
    if at > part.start:
        inside = inside._replace(keys_ahead=0, queries_ahead=0)
    if at + 1 < part.stop:
        inside = inside._replace(unfed=0)
    return [piece for piece in (before, inside, behind) if piece.stop > piece.start]


def _attention(queries: float, keys: float, width: int, *, half: bool = False) -> float:
    """Scores and weighted values: 4 FLOPs a query, key and channel; half of them under a causal mask."""
    return 4.0 * queries * keys * width / (2 if half else 1)


def prefill(text: DecoderConfig, parts: Sequence[Segment], *, causal: bool = True, mutual: bool = False) -> list[Terms]:
    """One entry a segment; the last one includes the head, which is applied to the last position alone.

    Args:
      text: the decoder.
      parts: from `segments`.
      causal: count the lower half of the attention; False counts the whole square, which is what a plain
        implementation with a mask computes.
      mutual: under a causal mask the visual tokens see each other in either direction (Molmo2).
    """
    out, width = [], text.heads * text.head_dim
    for part in parts:
        depth, n = part.stop - part.start, part.tokens
        attention = _attention(n, n, width, half=causal)
        if causal and mutual:
            attention += _attention(part.visual, part.visual, width, half=True)
        attending = text.attending_in(part.start, part.stop)
        matrices = 2.0 * text.weights_in(part.start, part.stop) * n
        out.append({"matrices": matrices, "attention": attending * attention})
        if text.delta is not None:
            out[-1]["recurrence"] = (depth - attending) * recurrence(text.delta, n, CHUNK)
        if part.unfed:
            out[-1]["matrices"] -= 2.0 * 3 * text.width * text.mlp * part.unfed
        if part.keys_ahead:
            keys, queries = 1.0 * part.keys_ahead, 1.0 * part.queries_ahead
            matrices = 2.0 * text.width * (keys * text.kv_heads * text.head_dim + queries * width)
            out[-1]["look-ahead"] = matrices + 2.0 * queries * keys * width
    out[-1]["head"] = 2.0 * text.width * text.vocab
    return out


def decode(text: DecoderConfig, parts: Sequence[Segment], new_tokens: int) -> Terms:
    """All steps behind the first token, which comes from the prefill; step i reads a cache that is i tokens longer.

    Stages that read a part of the cache while decoding count as if they read all of it; layers that run anew over all
    tokens at every step count whole squares of attention.
    """
    steps = max(new_tokens - 1, 0)
    runs, pairs, carried = 0.0, 0.0, 0.0
    for part in parts:
        attending, lengths = text.attending_in(part.start, part.stop), [part.cached + i for i in range(1, steps + 1)]
        runs += text.weights_in(part.start, part.stop) * (sum(lengths) if part.again else steps)
        pairs += attending * sum(n**2 if part.again else n for n in lengths)
        if text.delta is not None:
            carried += (part.stop - part.start - attending) * recurrence(text.delta, steps, 1)
    found = {
        "matrices": 2.0 * runs,
        "attention": _attention(1, pairs, text.heads * text.head_dim),
        "head": 2.0 * text.width * text.vocab * steps,
    }
    return found | ({} if text.delta is None else {"recurrence": carried})


def recurrence(delta: DeltaConfig, tokens: float, chunk: int) -> float:
    """FLOPs of the gated delta rule in one layer: reads and writes of the states, and the systems of chunks.

    Args:
      delta: sizes.
      tokens: that pass the layer.
      chunk: of how many a system consists, 1 for tokens that come one by one.
    """
    key, value = delta.key_dim, delta.value_dim
    states = 3 * 2.0 * key * value
    systems = chunk * (2 * 2.0 * key + key + value + 2.0 * value) if chunk > 1 else 0.0
    return tokens * delta.value_heads * (states + systems)


def siglip(vision: SiglipConfig, frames: int) -> Terms:
    """Patch embedding and blocks; evidence of tapped blocks costs nothing worth counting."""
    tokens, width = vision.tokens, vision.width
    block = 4 * width**2 + 2 * width * vision.mlp
    return {
        "patches": 2.0 * frames * tokens * vision.channels * vision.patch_size**2 * width,
        "matrices": 2.0 * frames * vision.layers * block * tokens,
        "attention": frames * vision.layers * _attention(tokens, tokens, width),
    }


def projector(vision: SiglipConfig, width: int, frames: int) -> Terms:
    """LLaVA's two layers, on all tokens before pooling."""
    return {"matrices": 2.0 * frames * vision.tokens * (vision.width * width + width**2)}


def connector(vision: SiglipConfig, pooling: Any, width: int, frames: int) -> Terms:
    """Molmo2's pooling attention, one query a window, and its projector.

    Args:
      vision: the tower.
      pooling: `models.molmo2.config.ConnectorConfig`.
      width: of the language model.
      frames: T.
    """
    wide, inner = vision.width * len(pooling.blocks), pooling.width
    windows = (-(-vision.side // pooling.pool)) ** 2
    pooled = 2 * wide * inner * vision.tokens + windows * inner * (wide + inner)
    return {
        "pooling": 2.0 * frames * pooled,
        "attention": frames * windows * _attention(1, pooling.pool**2, inner),
        "matrices": 2.0 * frames * windows * pooling.mlp * (2 * inner + width),
    }


def qwen_vit(vision: QwenVisionConfig, layout: Layout) -> Terms:
    """Patch embedding, blocks that see frames and blocks that see windows (border windows at their own size)."""
    rows, columns = layout.grid
    patches, width = layout.tokens * vision.unit, vision.width
    total = layout.frames * patches
    block = 4 * width**2 + (3 if vision.rms else 2) * width * vision.mlp
    whole = sum(vision.sees_frames)
    pairs = layout.frames * vision.unit**2 * _window_pairs(rows, columns, vision.window)
    terms = {
        "patches": 2.0 * total * vision.patch_values * width,
        "matrices": 2.0 * vision.layers * block * total,
        "attention": whole * layout.frames * _attention(patches, patches, width),
    }
    if whole < vision.layers:
        terms["attention in windows"] = (vision.layers - whole) * _attention(1, pairs, width)
    return terms


def _window_pairs(rows: int, columns: int, side: int) -> float:
    """Pairs of tokens that share a window of a frame."""
    if not side:
        return float((rows * columns) ** 2)

    def sizes(length: int) -> np.ndarray:
        whole, rest = divmod(length, side)
        return np.asarray([side] * whole + [rest] * (rest > 0), np.float64)

    return float(((sizes(rows)[:, None] * sizes(columns)[None, :]) ** 2).sum())


def mergers(vision: QwenVisionConfig, layout: Layout) -> Terms:
    """Qwen's merger, and with DeepStack one more a tap."""
    joined = vision.unit * vision.width
    one = 2.0 * layout.total * (joined**2 + joined * vision.out)
    return {"matrices": one} | ({"DeepStack": one * len(vision.taps)} if vision.taps else {})


def pooled_projector(vision: QwenVisionConfig, layout: Layout) -> Terms:
    """VideoLLaMA3's two layers, on the means over the patches of each token."""
    return {"matrices": 2.0 * layout.total * (vision.width * vision.out + vision.out**2)}


def intern_vit(vision: InternVitConfig, frames: int) -> Terms:
    """Patch embedding and blocks, whose frames hold a class token besides."""
    slots, width = vision.tokens + 1, vision.width
    return {
        "patches": 2.0 * frames * vision.tokens * vision.channels * vision.patch_size**2 * width,
        "matrices": 2.0 * frames * vision.layers * (4 * width**2 + 2 * width * vision.mlp) * slots,
        "attention": frames * vision.layers * _attention(slots, slots, width),
    }


def joined_projector(vision: InternVitConfig, width: int, layout: Layout) -> Terms:
    """InternVL's two layers, on the joined patches of each token."""
    return {"matrices": 2.0 * layout.total * (vision.unit * vision.width * width + width**2)}


def vision_terms(config: Any, layout: Layout) -> tuple[Terms, Terms]:
    """(tower, projector or mergers) of any family.

    Args:
      config: of a family of `jvidprune.models`.
      layout: frames (grid frames of the Qwen families) and tokens a frame.
    """
    connection = families.get(config.family).connection
    if connection == "connector":
        after = connector(config.vision, config.connector, config.text.width, layout.frames)
        return siglip(config.vision, layout.frames), after
    if connection == "projector":
        return siglip(config.vision, layout.frames), projector(config.vision, config.text.width, layout.frames)
    if connection == "shuffled":
        after = joined_projector(config.vision, config.text.width, layout)
        return intern_vit(config.vision, layout.frames), after
    after = pooled_projector if connection == "pooled" else mergers
    return qwen_vit(config.vision, layout), after(config.vision, layout)
