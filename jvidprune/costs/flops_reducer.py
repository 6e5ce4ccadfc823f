"""FLOPs of the reducers: the terms that dominate each method, from its settings and the sizes of the video.

Inner products over the feature width D count 2 D each, a pass over all features 2 for a product and a sum. Sorting,
comparing, and anything of size (T, N) alone is left out. Where the work depends on the video, what is counted is what
the method's bound allows and its name ends in "(at most)". T frames, N tokens a frame, M before pooling.

A reducer of one's own, or one that knows better, may have a method `flops(layout, width, ratio)` that returns the same
kind of mapping; it replaces the entry here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jvidprune.costs.flops_model import Terms
from jvidprune.ops.transport import iterations_of
from jvidprune.reducers.aot.sizes import limits
from jvidprune.reducers.divprune import HELD_TOKENS
from jvidprune.reducers.protocol import Reducer, full
from jvidprune.reducers.scissor import STEPS
from jvidprune.tokens import Layout


class Sizes(NamedTuple):
    """What the entries of `COSTS` read.

    Attributes:
      layout: frames and grids.
      width: D, of the tokens.
      keys: width of the evidence "keys".
      levels: DeepStack levels of a token.
      ratio: retention ratio.
      capacity: bound of the output rows (`reduce` rounds it up, which may add a little work).
    """

    layout: Layout
    width: int
    keys: int
    levels: int
    ratio: float
    capacity: int

    @property
    def gram(self) -> float:
        """Inner products of all pairs of tokens of one frame."""
        return 2.0 * self.layout.tokens**2 * self.width

    @property
    def neighbours(self) -> float:
        """Cosines of every token with its place in the frame before: products of pairs, and squared norms."""
        return 2.0 * (2 * self.layout.frames - 1) * self.layout.tokens * self.width

    def sums(self, slots: int = 1) -> float:
        """Weighted sums of the tokens into their rows, where a token goes to at most `slots` rows."""
        return 2.0 * slots * self.layout.total * self.width


def reducer_flops(
    reducer: Reducer, layout: Layout, width: int, ratio: float, *, keys: int = 0, levels: int = 0
) -> Terms:
    """The dominant terms of one reduction; nothing for a method that only ranks what it is given.

    Args:
      reducer: any reducer; one without an entry and without a `flops` method of its own counts as nothing.
      layout: of the video.
      width: D.
      ratio: retention ratio.
      keys: width of the evidence "keys".
      levels: DeepStack levels, for methods that compare those too.
    """
    known = full(reducer)
    own = known.flops(layout, width, ratio)
    if own is not None:
        return dict(own)
    entry = COSTS.get(known.info.name)
    if entry is None:
        return {}
    return entry(reducer, Sizes(layout, width, keys, levels, ratio, reducer.capacity(layout, ratio)))


def _visionzip(reducer: Any, s: Sizes) -> Terms:
    spatial = reducer.spatial_tokens(s.layout.tokens, s.ratio)
    seeds = spatial - max(int(spatial * reducer.dominant_share), int(reducer.cls_token))
    return {"seed similarities": 2.0 * s.layout.total * seeds * s.keys, "weighted sums": s.sums()}


def _divprune(reducer: Any, s: Sizes) -> Terms:
    groups = 1 if reducer.scope == "video" else s.layout.frames
    size = s.layout.total // groups
    picks = int(reducer.budget(s.layout, s.ratio).keep)
    terms = {"similarities": 2.0 * groups * size**2 * s.width, "selection steps": 4.0 * groups * picks * size}
    if size > HELD_TOKENS:
        terms["similarities of picks"] = 2.0 * groups * picks * size * s.width
    return terms


def _scissor(reducer: Any, s: Sizes) -> Terms:
    tries = 1 if reducer.tau is not None else STEPS + 1
    return {
        "similarities in frames": s.layout.frames * s.gram,
        "similarities of components (at most)": 2.0 * tries * s.layout.total**2 * s.width,
        "similarities to centres (at most)": 2.0 * s.layout.total * s.capacity * s.width,
        "weighted sums": (tries + 2) * s.sums(),
    }


def _tome(reducer: Any, s: Sizes) -> Terms:
    clip = s.layout.frames if reducer.clip is None else min(reducer.clip, s.layout.frames)
    # Halvings of the list shrink a round's work by four each.
    pairs, size = 0.0, clip * s.layout.tokens
    while size > 1:
        pairs += (size - size // 2) * (size // 2)
        size -= size // 2
    clips = s.layout.frames / clip
    matching = 2.0 * clips * pairs * s.width / reducer.heads
    return {"similarities of pairs": matching, "sums of rounds": 2 * s.sums(), "weighted sums": s.sums()}


def _cdpruner(reducer: Any, s: Sizes) -> Terms:
    lists = s.layout.frames if reducer.scope == "frame" else 1
    size = s.layout.total // lists
    picks = int(reducer.budget(s.layout, s.ratio).keep)
    # Each part of a list takes its share of the picks, and both look at all of the list.
    steps = lists * (picks / reducer.parts) ** 2 * size * reducer.parts
    terms = {"similarities": 2.0 * lists * size**2 * s.width, "selection steps": steps}
    return terms | ({"relevance": 4.0 * s.layout.total * s.width} if reducer.relevance == "text" else {})


def _vcast(reducer: Any, s: Sizes) -> Terms:
    # Of each number: 1 for means, 2 for norms, 2 for the cosine with the mean.
    return {"passes over the features": 5.0 * s.layout.total * s.width}


def _evs(reducer: Any, s: Sizes) -> Terms:
    return {"neighbour cosines": s.neighbours * (1 + s.levels * reducer.deepstack)}


def _vidcom2(reducer: Any, s: Sizes) -> Terms:
    # Of each number: 4 for variances, 3 for norms, 2 for centres, 2 to scale, 3 for each of two distances.
    wide = s.width * (1 + s.levels * reducer.deepstack)
    return {"passes over the features": 17.0 * s.layout.total * wide}


def _holov(reducer: Any, s: Sizes) -> Terms:
    if not reducer.diversity:
        return {}
    if reducer.per_frame:
        return {"similarities": s.layout.frames * s.gram}
    return {"similarities": 2.0 * s.layout.total**2 * s.width}


def _dycoke(reducer: Any, s: Sizes) -> Terms:
    compared = s.layout.frames // 2 + (s.layout.frames + 1) // 4
    return {"reference cosines": 2.0 * (s.layout.frames + compared) * s.layout.tokens * s.width}


def _flashvid(reducer: Any, s: Sizes) -> Terms:
    frames, tokens = s.layout.frames, s.layout.tokens
    terms = {"similarities in frames": frames * s.gram}
    if reducer.method == "attn_div_v2":
        terms["event relevance"] = 2.0 * s.layout.total * s.width
    if reducer.alpha < 1.0:
        if reducer.temporal_threshold < 1.0:
            terms["neighbour frames"] = (frames - 1) * s.gram
            terms["distances of merged tokens (at most)"] = (frames - 1) * s.gram
        terms["weighted sums"] = s.sums()
    selected = int(reducer.budget(s.layout, s.ratio).n_select)
    terms["selection steps"] = 2.0 * frames * selected * tokens
    return terms


def _fastvid(reducer: Any, s: Sizes) -> Terms:
    # Every frame is compared with the anchor frames of its segment; segments of equal length are typical.
    length = -(-s.layout.frames // reducer.segments)
    slots = -(-length // reducer.interval)
    return {"anchor frame similarities": s.layout.frames * slots * s.gram, "weighted sums": s.sums(slots)}


def _holitom(reducer: Any, s: Sizes) -> Terms:
    terms = {
        "neighbour cosines": s.neighbours,
        "window distances (at most)": s.layout.frames // 2 * s.gram,
        "weighted sums": s.sums(),
    }
    if reducer.contextual_share > 0:
        terms["distances in frames"] = s.layout.frames * s.gram
    return terms


def _prunevid(reducer: Any, s: Sizes) -> Terms:
    frames = s.layout.frames
    return {
        "frame distances": 2.0 * frames**2 * s.width,
        "sums over segments": 5.0 * s.layout.total * s.width,
        "distances of tokens (at most)": (frames + frames // 2) * s.gram,
        "weighted sums": s.sums(),
    }


def _ottvid(reducer: Any, s: Sizes) -> Terms:
    frames, tokens = s.layout.frames, s.layout.tokens
    kept = int(reducer.budget(s.layout, s.ratio).per_frame)
    terms = {"similarities": frames * s.gram, "coverage steps": 4.0 * frames * kept * tokens**2}
    if reducer.temporal and frames > 1:
        pairs = frames - 1
        terms["pair weights"] = 2.0 * pairs * tokens * s.width
        terms["transport costs"] = 2.0 * pairs * kept**2 * s.width
        # Of each entry and half step: a difference, a maximum, an exponential and a sum.
        terms["transport iterations"] = 8.0 * iterations_of(reducer.transport.solver) * pairs * kept**2
        terms["weighted sums"] = s.sums()
    return terms


def _aot(reducer: Any, s: Sizes) -> Terms:
    geometry = reducer.geometry(s.layout.grid, s.layout.unpooled_grid)
    frames, tokens = s.layout.frames, geometry.tokens
    limit = limits(s.capacity, geometry, reducer.rules, frames)
    steps = iterations_of(reducer.intra_transport.solver)
    terms = {
        "anchor cosines": 2.0 * frames * tokens * limit.candidates * s.width,
        "transport iterations (at most)": 4.0 * frames * steps * tokens * limit.candidates,
        "pooling weights": 2.0 * frames * limit.slots * limit.candidates * tokens,
        "weighted sums": 2.0 * frames * limit.slots * tokens * s.width,
    }
    if reducer.inter:
        terms["weighted sums"] *= 2
        terms["clip similarities and sums"] = 6.0 * frames * limit.slots**2 * s.width
    return terms


def _stop(reducer: Any, s: Sizes) -> Terms:
    return reducer_flops(reducer.base, s.layout, s.width, s.ratio, keys=s.keys, levels=s.levels)


def _sequential(reducer: Any, s: Sizes) -> Terms:
    """Both stages at their shares: the second on the tokens that the first leaves of every frame."""
    first, second = reducer.shares(s.layout, s.ratio)
    terms: Terms = {}
    for order, stage, (layout, ratio) in (("first", reducer.first, first), ("second", reducer.second, second)):
        found = reducer_flops(stage, layout, s.width, ratio, keys=s.keys, levels=s.levels)
        terms |= {f"{order}: {name}": flops for name, flops in found.items()}
    return terms


def _qwen_norm(reducer: Any, s: Sizes) -> Terms:
    norms = {"norms": 2.0 * s.layout.total * s.width}
    if reducer.method == "visionzip":
        return norms | {"similarities": s.layout.frames * s.gram, "weighted sums": s.sums()}
    # Of either method only its settings are read.
    return norms | (_fastvid if reducer.method == "fastvid" else _holitom)(reducer.inner_method, s)


def _visionzip_qwen(reducer: Any, s: Sizes) -> Terms:
    return {
        "neighbour cosines": s.neighbours,
        "similarities": s.layout.frames * s.gram,
        "weighted sums": s.sums(),
    }


COSTS: dict[str, Callable[[Any, Sizes], Terms]] = {
    "visionzip": _visionzip,
    "divprune": _divprune,
    "scissor": _scissor,
    "tome": _tome,
    "cdpruner": _cdpruner,
    "vcast": _vcast,
    "evs": _evs,
    "vidcom2": _vidcom2,
    "holov": _holov,
    "dycoke": _dycoke,
    "flashvid": _flashvid,
    "fastvid": _fastvid,
    "holitom": _holitom,
    "prunevid": _prunevid,
    "ottvid": _ottvid,
    "aot": _aot,
    "stop": _stop,
    "sequential": _sequential,
    "qwen_norm": _qwen_norm,
    "visionzip_qwen": _visionzip_qwen,
}
"""Registry name -> terms. The methods without an entry gather, draw or sort and compute nothing of width D."""
