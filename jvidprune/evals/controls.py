"""What every sweep is compared with: reducers that look at nothing, and whether a method beats the best of them.

A method and a control are compared at equal tokens as far as there are such runs. Of each control two runs count: the
one that keeps as many tokens as the method or the next fewer (from below), and the one that keeps as many or the next
more (from above); on either side the control that the method has most trouble with on the same questions is the rival.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from jvidprune.evals.metrics import ALL, Cell
from jvidprune.evals.paired import Difference, Run, compare_runs, corrected
from jvidprune.evals.plan import BASELINES

CONTROLS = (
    *("random", "uniform", "frame_drop", "inner_random", "pool_space", "pool_time", "pool_spacetime"),
    *("sample_space", "sample_time", "sample_spacetime", "sample_random_cell", "downscale", "fewer_frames"),
)
"""Methods that look neither at the video nor at the question."""

EQUAL = 0.01
"""Tokens by which two runs may differ, as a share, and still keep equally many."""

NEAR = 0.1
"""Tokens that a control may keep fewer, as a share, before the comparison is called uneven."""

Outcome = Literal["beats", "more tokens", "open", "below"]

OUTCOMES: Mapping[Outcome, str] = {
    "beats": "beats the best control",
    "more tokens": "beats only controls that keep fewer tokens",
    "open": "not shown to beat the best control",
    "below": "below the best control",
}
"""How a method stands, in words."""


@dataclasses.dataclass(frozen=True)
class Rival:
    """A control that a method is held against.

    Attributes:
      run: the control and its ratio.
      kept: mean tokens it keeps of a clip.
      difference: from the control to the method.
    """

    run: Run
    kept: float
    difference: Difference


@dataclasses.dataclass(frozen=True)
class Standing:
    """How one method at one ratio stands against the controls of its sweep.

    Attributes:
      run: the method and its ratio.
      kept: mean tokens it keeps of a clip.
      below: the strongest control among those that keep as many tokens or the next fewer; None where none does.
      above: the strongest among those that keep as many or the next more; None where none does.
      matched: all runs of a ratio cost the same (`evals.matching`), and those were compared whatever they keep.
    """

    run: Run
    kept: float
    below: Rival | None
    above: Rival | None
    matched: bool = False

    @property
    def rival(self) -> Rival:
        """The control that is named beside the method: from below where there is one."""
        found = self.below or self.above
        assert found is not None
        return found

    @property
    def even(self) -> bool:
        """Whether the rival from below keeps as many tokens as the method, or nearly."""
        return self.matched or (self.below is not None and self.below.kept >= (1 - NEAR) * self.kept)

    @property
    def outcome(self) -> Outcome:
        """Whether the method beats the best control, where interval and corrected test agree.

        A rival that keeps clearly fewer tokens proves little by losing: then the one from above has to lose as well.
        """
        if self.below is not None and _established(self.below, -1):
            return "below"
        wins = [_established(rival, 1) for rival in (self.below, self.above) if rival is not None]
        if not wins[0]:
            return "open"
        if self.even or self.below is None:
            return "beats"
        return "beats" if all(wins) and self.above is not None else "more tokens"


def base_name(text: str) -> str:
    """The name of a method as it was typed, without its settings."""
    return text.partition("(")[0].partition(":")[0].strip()


def is_control(name: str) -> bool:
    """Whether a method as it was typed is one of `CONTROLS`, whatever its settings."""
    return base_name(name) in CONTROLS


def against_controls(
    records: Sequence[Mapping[str, Any]],
    cells: Mapping[tuple[str, float, str], Cell],
    controls: Collection[str],
    *,
    matched: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> dict[Run, Standing]:
    """How every method at every ratio stands against the controls; nothing without a control.

    The rival is chosen by the questions that it is then compared on, so it is a little luckier than it will be
    elsewhere: that makes it harder to beat a control, not easier. All comparisons of the sweep are one family for
    Holm's correction.

    Args:
      records: samples of the sweep.
      cells: accuracies by (method, ratio, category), for the tokens really kept.
      controls: names of the methods that are controls.
      matched: runs of one ratio cost the same, so that the controls of this ratio alone are rivals.
      draws, seed: of the bootstrap.
    """
    kept = {(method, ratio): c.kept for (method, ratio, name), c in cells.items() if name == ALL}
    methods = [run for run in kept if run[0] not in controls and run[0] not in BASELINES]

    def rivals(run: Run, side: int) -> list[Run]:
        if matched:
            return [one for name in controls if (one := (name, run[1])) in kept]
        return _nearest(run, kept, controls, side)

    sides = {run: {side: rivals(run, side) for side in (-1, 1)} for run in methods}
    pairs = [(rival, run) for run in methods for side in sides[run].values() for rival in side]
    pairs = list(dict.fromkeys(pairs))
    found = dict(zip(pairs, compare_runs(records, pairs, draws=draws, seed=seed), strict=True))

    def strongest(run: Run, side: int) -> Difference | None:
        known = [one for rival in sides[run][side] if (one := found[rival, run]) is not None]
        # Of equally strong ones the one with fewer tokens says more.
        return min(known, key=lambda one: (one.change, kept[one.first]), default=None)

    chosen = {run: [strongest(run, side) for side in (-1, 1)] for run in methods}
    family = list(dict.fromkeys(one for both in chosen.values() for one in both if one is not None))
    judged = dict(zip(family, corrected(family), strict=True))
    out = {}
    for run, both in chosen.items():
        below, above = (None if one is None else Rival(one.first, kept[one.first], judged[one]) for one in both)
        if below or above:
            out[run] = Standing(run, kept[run], below, above, matched)
    return out


def _nearest(run: Run, kept: Mapping[Run, float], controls: Collection[str], side: int) -> list[Run]:
    """Of each control the run whose tokens are nearest to those of another run from one side, equal ones included."""
    tokens, out = kept[run], []
    for control in controls:
        far = {one: side * (kept[one] - tokens) for one in kept if one[0] == control}
        some = [one for one, gap in far.items() if gap >= -EQUAL * tokens]
        # Controls inside the language model keep all tokens at its input: of those the same ratio.
        if some:
            out.append(min(some, key=lambda one: (max(0.0, far[one]), abs(one[1] - run[1]))))
    return out


def _established(rival: Rival, sign: int) -> bool:
    return rival.difference.established and sign * rival.difference.change > 0


WRITTEN = ("outcome", "control", "control_ratio", "control_kept", "change", "change_low", "change_high", "p", "p_holm")
"""What `written` says of a standing beside its run."""


def written(standing: Standing) -> dict[str, Any]:
    """A standing as plain values; the change is that from the control to the method, a share of 1."""
    rival = standing.rival
    found = rival.difference
    values = (standing.outcome, *rival.run, rival.kept, found.change, found.low, found.high, found.p, found.adjusted)
    run = {"method": standing.run[0], "ratio": standing.run[1], "kept": standing.kept}
    return run | dict(zip(WRITTEN, values, strict=True))


def told(standings: Collection[Standing], titles: Mapping[str, str]) -> list[str]:
    """What a reader needs to know of the controls, a line each: who beats the best of them, and who is below."""
    lines = []
    for outcome in ("beats", "more tokens", "below"):
        ratios: dict[str, list[str]] = {}
        for standing in standings:
            if standing.outcome == outcome:
                name = titles.get(standing.run[0], standing.run[0])
                ratios.setdefault(name, []).append(f"{100 * standing.run[1]:g}")
        if ratios:
            where = "; ".join(f"{name} at {', '.join(some)} %" for name, some in ratios.items())
            lines.append(f"{OUTCOMES[outcome]}: {where}")
    if standings and not any(standing.outcome == "beats" for standing in standings):
        equal = "at equal cost" if any(standing.matched for standing in standings) else "at as many tokens"
        lines.insert(0, f"no method is shown to beat the best control {equal}")
    return lines


def sentence(standing: Standing, titles: Mapping[str, str]) -> str:
    """Who is compared with whom, by how much, with how many tokens, and how surely."""
    rival, name = standing.rival, titles.get(standing.run[0], standing.run[0])
    found, other = rival.difference, titles.get(rival.run[0], rival.run[0])
    change = f"{100 * found.change:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    at = "" if rival.run[1] == standing.run[1] else f" at {100 * rival.run[1]:g} %"
    tokens = f"{standing.kept:,.0f} against {rival.kept:,.0f} tokens"
    sure = f"p = {found.p:.2g}, corrected {found.adjusted:.2g}" if found.adjusted is not None else f"p = {found.p:.2g}"
    return f"{name} at {100 * standing.run[1]:g} %: {change} over {other}{at}, {tokens}, {sure}"
