"""Equal cost: each method at the setting with which it costs what a plain selection before the language model would.

At a nominal ratio r the plain selection keeps max(1, floor(r n + 1/2)) of n visual tokens and everything behind it
reads those. Its cost is the target: tokens of a layer (mean over the layers), FLOPs of the prefill, or bytes of keys
and values of the prompt. A method's setting is the ratio that it is asked for instead of r; what that means is the
method's own affair (a share before the language model, behind a cut, the power of a schedule). It is found from the
formulas of `costs` for a clip's layout, before anything is compiled, and traced like any ratio: it makes no further
program.

Where the video decides how many tokens a method hands on, its setting is chosen for what it is expected to
(`BaseReducer.expected`), and what it then cost is told. A prompt is taken to have `TEXT` tokens of text besides those
around the video, whatever is asked: so that a clip has one setting for all of its questions.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jvidprune.costs.flops import marker_tokens, newline_kind, newline_tokens, prompt_segments
from jvidprune.costs.flops_model import prefill
from jvidprune.errors import JvidpruneError
from jvidprune.evals.counts import stretches
from jvidprune.evals.paired import Run
from jvidprune.evals.store import Record
from jvidprune.llm.batch import Reply
from jvidprune.llm.prompt_cuts import newlines_compete
from jvidprune.models import family as families
from jvidprune.reducers.counts import half_up
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import Reducer, inner_stages, title_of, with_defaults
from jvidprune.tokens import Layout

Match = Literal["tokens", "flops", "kv"]

UNITS: Mapping[Match, tuple[str, float]] = {
    "tokens": ("tokens a layer", 1.0),
    "flops": ("TFLOP of prefill", 1e12),
    "kv": ("MiB of keys and values", 2.0**20),
}
"""What is made equal, in the unit that people read and its size."""

TEXT = 57
"""Tokens of text of a prompt, as in `costs.flops`."""

REACHED = 0.1
"""Share of the target that a method's cost may be off before it is called out of reach."""

_LEAST = 1e-3
_GRID = 192
_FINER, _ROUNDS = 24, 3

MATCHED = ("setting", "target", "reached")
"""What a record of costs holds of this: the ratio asked for; target and what was reached, tokens, FLOPs or bytes."""


class Setting(NamedTuple):
    """How a method comes nearest to a target.

    Attributes:
      ratio: what it is asked for.
      target: cost of a plain selection.
      cost: of the method, by formula.
    """

    ratio: float
    target: float
    cost: float

    @property
    def distance(self) -> float:
        """Of the cost from the target, as a share of it."""
        return self.cost / self.target - 1


@dataclasses.dataclass(frozen=True)
class Costing:
    """What reading a prompt costs on a model, by formula.

    Attributes:
      config: of the model.
      match: what is counted.
      itemsize: bytes of a number of keys and values.
    """

    config: Any
    match: Match
    itemsize: int = 2

    def __call__(self, layout: Layout, reducer: Reducer, ratio: float, kept: int | None = None) -> float:
        """Tokens of a layer, FLOPs of the prefill, or bytes of the prompt's keys and values.

        Args:
          layout: of the video.
          reducer: the method.
          ratio: what it is asked for.
          kept: visual tokens at the input, where they are known; else those that are expected.

        Raises:
          JvidpruneError: a ratio that the method refuses.
        """
        text, layers = self.config.text, self.config.text.layers
        kept = with_defaults(reducer).expected(layout, ratio) if kept is None else kept
        seen = with_defaults(reducer).seen(layout, ratio)
        newlines = newline_tokens(self.config, seen, reducer)
        words = TEXT + marker_tokens(self.config, seen, reducer)
        sizes = {"kept": kept, "newlines": newlines, "prompt": kept + newlines + words}
        parts = prompt_segments(self.config, reducer, ratio, **sizes)
        if self.match == "flops":
            reads = prefill(text, parts, mutual=families.get(self.config.family).bidirectional)
            return math.fsum(value for terms in reads for value in terms.values())
        acting = [stage for stage in inner_stages(reducer, ratio) if stage.boundary < layers]
        competes = newlines_compete(acting, newline_kind(self.config, reducer))
        # Some methods spend a budget of tokens times layers, whatever their cuts leave on the way.
        spent = [share for stage in acting if (share := stage.kept.layer_share) is not None]
        if spent:
            whole = self._layers(0, layers) * (min(spent) * (kept + newlines * competes) + newlines * (not competes))
        else:
            entries = [part.cached if self.match == "kv" else part.tokens for part in parts]
            depths = [self._layers(part.start, part.stop) for part in parts]
            whole = sum(depth * (n - words) for depth, n in zip(depths, entries, strict=True))
        if self.match == "kv":
            return self.entry * (whole + self._layers(0, layers) * words)
        return whole / layers * kept / max(1, kept + newlines) if competes else whole / layers - newlines

    def reached(self, layout: Layout, reducer: Reducer, ratio: float, replies: Sequence[Reply]) -> float:
        """What the prompts of a clip really cost, all else as in the target: its tokens are those that layers had.

        Args:
          layout: of the clip.
          reducer: the method.
          ratio: its setting.
          replies: of the clip's questions, which say what is cached.
        """
        if self.match == "flops":
            kept = round(sum(reply.kept for reply in replies) / len(replies))
            return self(layout, reducer, ratio, kept)
        layers = self.config.text.layers
        acting = [stage for stage in inner_stages(reducer, ratio) if stage.boundary < layers]
        competes = newlines_compete(acting, newline_kind(self.config, reducer))
        words = TEXT + marker_tokens(self.config, with_defaults(reducer).seen(layout, ratio), reducer)
        found = []
        for reply in replies:
            read, cached = stretches(self.config, reducer, ratio, reply)
            text = reply.prompt - reply.kept - reply.newlines
            whole = sum(count * (tokens - text) for count, tokens in (cached if self.match == "kv" else read))
            if self.match == "kv":
                found.append(self.entry * (whole + self._layers(0, layers) * words))
            else:
                part = reply.kept / max(1, reply.kept + reply.newlines)
                found.append(whole / layers * part if competes else whole / layers - reply.newlines)
        return math.fsum(found) / len(found)

    def _layers(self, start: int, stop: int) -> int:
        """Layers of [start, stop) that count: with "kv" those that have keys and values."""
        return self.config.text.attending_in(start, stop) if self.match == "kv" else stop - start

    @property
    def entry(self) -> float:
        """Bytes of one token's keys and values in one layer."""
        return 2.0 * self.config.text.kv_heads * self.config.text.head_dim * self.itemsize

    def target(self, layout: Layout, ratio: float) -> float:
        """Cost of a plain selection of a ratio before the language model."""
        return self(layout, Full(), 1.0, half_up(layout.total, ratio))


class Matcher:
    """Finds settings; the same layout, method and ratio are looked for once."""

    def __init__(self, costing: Costing):
        """Starts with nothing found.

        Args:
          costing: of the model.
        """
        self.costing = costing
        self._grids: dict[tuple[Layout, Reducer], list[tuple[float, float]]] = {}
        self._found: dict[tuple[Layout, Reducer, float], Setting] = {}

    def setting(self, layout: Layout, reducer: Reducer, ratio: float) -> Setting:
        """The setting nearest to the cost of a plain selection; of equally near ones that nearest to the ratio itself.

        Args:
          layout: of the video.
          reducer: the method.
          ratio: nominal, in (0, 1].

        Raises:
          JvidpruneError: a method that refuses every ratio, or one that comes no nearer than `REACHED`; the sentence
            says how near.
        """
        key = layout, reducer, ratio
        if key not in self._found:
            self._found[key] = self._search(layout, reducer, ratio)
        found = self._found[key]
        if abs(found.distance) > REACHED:
            (unit, size), title = UNITS[self.costing.match], title_of(reducer)
            raise JvidpruneError(
                f"{title} cannot cost what a plain selection of {100 * ratio:g} % does, {found.target / size:,.4g} "
                f"{unit}: its nearest are {found.cost / size:,.4g} ({100 * found.distance:+.0f} %), at a ratio of "
                f"{found.ratio:.3g}."
            )
        return found

    def _search(self, layout: Layout, reducer: Reducer, ratio: float) -> Setting:
        target = self.costing.target(layout, ratio)

        def rank(one: tuple[float, float]) -> tuple[float, float, float]:
            return abs(one[1] - target), abs(math.log(one[0] / ratio)), one[0]

        grid = sorted([*self._grid(layout, reducer), *self._costs(layout, reducer, [ratio])])
        if not grid:
            # Says why in its own words.
            self.costing(layout, reducer, ratio)
        best = min(grid, key=rank)
        for _ in range(_ROUNDS):
            if best[1] == target:
                break
            at = grid.index(best)
            low, high = grid[max(at - 1, 0)][0], grid[min(at + 1, len(grid) - 1)][0]
            grid = sorted({best, *self._costs(layout, reducer, np.linspace(low, high, _FINER).tolist())})
            best = min(grid, key=rank)
        return Setting(best[0], target, best[1])

    def _grid(self, layout: Layout, reducer: Reducer) -> list[tuple[float, float]]:
        """(ratio, cost) from a thousandth to 1, in equal steps of their logarithms."""
        key = layout, reducer
        if key not in self._grids:
            ratios = np.geomspace(_LEAST, 1.0, _GRID).tolist()
            self._grids[key] = self._costs(layout, reducer, [*ratios[:-1], 1.0])
        return self._grids[key]

    def _costs(self, layout: Layout, reducer: Reducer, ratios: Sequence[float]) -> list[tuple[float, float]]:
        """(ratio, cost) of the ratios that a method does not refuse."""
        found = []
        for ratio in ratios:
            try:
                found.append((ratio, self.costing(layout, reducer, ratio)))
            except ValueError:
                continue
        return found


@dataclasses.dataclass(frozen=True)
class Matched:
    """How near one method at one nominal ratio came to the cost of a plain selection, over the clips of a run.

    Attributes:
      run: method and nominal ratio.
      match: what was made equal.
      low, high: smallest and largest ratio that it was asked for instead.
      target, reached: means over clips, in the unit of `UNITS`.
      worst: of one clip, the largest distance from its target as a share of it, with its sign.
    """

    run: Run
    match: Match
    low: float
    high: float
    target: float
    reached: float
    worst: float

    @property
    def distance(self) -> float:
        """Of what was reached from the target, as a share of it."""
        return self.reached / self.target - 1

    def row(self) -> dict[str, Any]:
        """Plain values under `MATCHED_FIELDS`."""
        values = *self.run, self.match, self.low, self.high, self.target, self.reached, self.distance, self.worst
        return dict(zip(MATCHED_FIELDS, values, strict=True))

    def texts(self, name: str) -> list[str]:
        """The same for people, under `MATCHED_HEAD`."""
        asked = f"{self.low:.4g}" if self.high - self.low < 5e-5 else f"{self.low:.4g} to {self.high:.4g}"
        numbers = f"{self.reached:,.4g}", f"{self.target:,.4g}"
        return [name, f"{100 * self.run[1]:g} %", asked, *numbers, *(_points(v) for v in (self.distance, self.worst))]


MATCHED_FIELDS = ("method", "ratio", "match", "setting_low", "setting_high", "target", "reached", "distance", "worst")
MATCHED_HEAD = ("method", "as much as", "asked for", "reached", "target", "distance", "worst clip")


def _points(share: float) -> str:
    return f"{100 * share:+.1f} %"


def matched_runs(batches: Sequence[Record], match: Match | None) -> dict[Run, Matched]:
    """How near every run came, by method and ratio; nothing where costs were not made equal.

    Args:
      batches: records of costs.
      match: what was made equal.
    """
    if match is None:
        return {}
    rows: dict[Run, list[Record]] = {}
    for record in batches:
        if not record["refused"] and all(name in record for name in MATCHED):
            rows.setdefault((record["method"], record["ratio"]), []).append(record)
    out = {}
    for run, some in rows.items():
        (_, size), settings = UNITS[match], [record["setting"] for record in some]
        target, reached = (math.fsum(r[name] for r in some) / len(some) / size for name in ("target", "reached"))
        worst = max((record["reached"] / record["target"] - 1 for record in some), key=abs)
        out[run] = Matched(run, match, min(settings), max(settings), target, reached, worst)
    return out


def unreached(refused: Mapping[str, Mapping[float, str]]) -> list[str]:
    """A sentence for every method that is out of reach of a target; the first of its ratios stands for all."""
    out = []
    for reasons in refused.values():
        known = [why for why in reasons.values() if "cannot cost what a plain selection" in why]
        if known:
            more = len(known) - 1
            out.append(known[0] + (f" ({more} more ratio{'s' * (more > 1)} alike)" if more else ""))
    return out
