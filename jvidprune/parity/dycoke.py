"""DyCoke's golden files: token selection before the language model, and the decoding policy."""

from collections.abc import Iterator

import jax
import numpy as np

from jvidprune.cuts.decoding import DecodePolicy
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.planned import planned
from jvidprune.reducers.dycoke import DyCoke
from jvidprune.tokens import VideoTokens


def is_selection(golden: Golden) -> bool:
    """TTM: kept tokens with the similarities of pairs and of windows of four."""
    return "k" in golden.config and golden.has("features", "index", "similarity_pairs", "tokens_per_frame")


def is_decoding(golden: Golden) -> bool:
    """DP: attention rows of successive decoding steps and what deep layers read."""
    return {"start", "length", "p", "threshold"} <= set(golden.config) and golden.has("rows", "row_length", "attended")


def compare_selection(golden: Golden) -> Iterator[Row]:
    """Rows of a TTM file."""
    features = golden["features"]
    frames, tokens, _ = features.shape
    generator = golden.config.get("generator", {})
    grid = (generator.get("H", 1), generator.get("W", tokens))
    video = VideoTokens.create(features, grid=grid if grid[0] * grid[1] == tokens else (1, tokens))
    reducer = DyCoke()
    budget = reducer.budget_of(video.layout(), float(golden.config["k"]))
    capacity = reducer.count(video.layout(), int(budget.keep))
    plan, reduced = planned(reducer, video, budget, capacity=capacity)
    similarity = np.asarray(plan.diagnostics["similarity"])
    yield close("similarity_pairs", similarity[1::2], golden["similarity_pairs"], 1e-5)
    if "similarity_quads" in golden.arrays:
        quads = golden["similarity_quads"]
        yield close("similarity_quads", similarity[2::4][: len(quads)], quads, 1e-5)
    ids = np.asarray(plan.ids)[: int(plan.count)]
    yield exact("tokens_per_frame", np.bincount(ids // tokens, minlength=frames), golden["tokens_per_frame"])
    yield exact("index", ids, golden["index"])
    if "tokens" in golden.arrays:
        yield close("tokens", np.asarray(reduced.tokens)[: int(plan.count)], golden["tokens"], 0.0)


def compare_decoding(golden: Golden) -> Iterator[Row]:
    """Rows of a decoding file."""
    config = golden.config
    rows, lengths = golden["rows"], golden["row_length"]
    slots, start = np.arange(rows.shape[-1]), int(config["start"])
    # The last visual token counts as text: it stands behind the `length` prunable ones.
    visual = (slots >= start) & (slots <= start + int(config["length"]))
    reducer = DyCoke(
        decode_layer=int(config.get("layer", 3)),
        decode_dropped=float(config["p"]),
        decode_threshold=float(config["threshold"]),
    )
    (stage,) = reducer.inner(0.5)
    policy = DecodePolicy.create(stage.layer, stage.kept, visual[None], threshold=float(config["threshold"]))
    read, cosines = [], []
    for row, length in zip(rows, lengths, strict=True):
        cosine, (policy, mask) = _decoding_step(policy, row[None])
        read.append(np.asarray(mask[0]) & (slots < length))
        cosines.append(float(cosine[0]))
    yield close("similarity", cosines, golden["similarity"], 1e-5)
    yield exact("pruned", np.asarray(cosines) < policy.threshold, golden["pruned"])
    yield exact("attended", np.stack(read), golden["attended"])


@jax.jit
def _decoding_step(policy: DecodePolicy, attention: jax.Array) -> tuple[jax.Array, tuple[DecodePolicy, jax.Array]]:
    """The cosine that decides a step, and the step."""
    return policy.choose(attention).similarity, policy.step(attention)


COMPARERS = [Comparer("dycoke", is_selection, compare_selection), Comparer("dycoke", is_decoding, compare_decoding)]
