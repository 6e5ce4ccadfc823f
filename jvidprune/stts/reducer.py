"""STTS as one more method of `ask` and `sweep`: the tower runs up to the scores once, and on from there a ratio."""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.fields import NO_SETTING, Seed
from jvidprune.ops.compact import selection_plan
from jvidprune.reducers.prompt_rules import PositionRule, PromptRules
from jvidprune.reducers.protocol import BaseReducer, MethodInfo, TokensFrom, check_ratio
from jvidprune.stts.budget import windows_to_remove
from jvidprune.stts.config import Method, STTSConfig
from jvidprune.stts.select import keep_windows, one_video
from jvidprune.tokens import Layout, Plan, Reduced, VideoTokens


class STTSBudget(NamedTuple):
    """int32 windows to remove of the video."""

    remove: Any


@dataclasses.dataclass(frozen=True)
class STTS(BaseReducer):
    """Unified spatio-temporal token scoring (arXiv 2603.18004): windows are pruned inside the tower.

    It needs a model with a scorer (`attach`), to which `VideoLLM.reducer` binds it; what is left open here is as the
    scorer's settings say. The retention ratio is 1 - `STTSConfig.removed`. `reduce` and `sweep` run the blocks behind
    the pruning and connect the kept tokens; `plan` alone tells which tokens stay, for the scorer and on any video that
    carries its scores.

    Attributes:
      method: what ranks the windows: the scorer, or "heuristic", "easy", "random".
      refill: see `STTSConfig`.
      seed: of "random".
      model: that it is bound to, by `bind`; methods that are bound to different ones are not equal.
      positions: of kept tokens, see `prompt_rules.PositionRule`; None as the scorer was trained, else as for all.
    """

    method: Method = "scorer"
    refill: Literal["official", False] | None = None
    seed: Seed = 0
    positions: PositionRule | None = None
    model: Any = dataclasses.field(default=None, kw_only=True, repr=False, metadata=NO_SETTING)

    tokens_from: ClassVar[TokensFrom] = "tower"  # pyright: ignore[reportIncompatibleVariableOverride]
    info: ClassVar[MethodInfo] = MethodInfo(
        name="stts",
        title="STTS",
        paper="2603.18004",
        summary="a scorer inside the tower prunes windows of patches over the whole video while the tower runs",
        nested=True,
        merges=False,
        exact=True,
        quirks=("pruned patches of frames that are alone in a packed row come back (refill='official')",),
    )

    @property
    def needs(self) -> frozenset[str]:
        """The state of the tower at the scores, and for the heuristics what entered it."""
        entered = {"tower_input"} if self.method in ("heuristic", "easy") else set()
        return frozenset({"tower_state", "tower_scores"} | entered)

    def bind(self, model: Any) -> "STTS":
        """The same method on a model; `attach.ScoredModel` runs it.

        Raises:
          JvidpruneError: a model without a scorer.
        """
        if not hasattr(model, "stts"):
            raise JvidpruneError("stts needs a model with a scorer, see stts.attach.")
        made = dataclasses.replace(self, model=model)
        made.config.check_layers(model.layers)
        return made

    @property
    def config(self) -> STTSConfig:
        """The settings that run: the bound model's with what is set here."""
        base = STTSConfig() if self.model is None else self.model.stts
        refill = base.refill if self.refill is None else self.refill
        return dataclasses.replace(base, method=self.method, refill=refill)

    @property
    def prompt(self) -> PromptRules:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Positions as the scorer was trained under, unless others were asked for."""
        keep = self.config.keep_positions
        trained: PositionRule | None = None if keep is None else "original" if keep else "renumbered"
        return PromptRules(positions=self.positions or trained)

    def budget(self, layout: Layout, ratio: float) -> STTSBudget:
        """Windows to remove, truncated in float32 as in the released code.

        Raises:
          JvidpruneError: an impossible ratio, or windows that do not divide the grid.
        """
        removed = 1.0 - check_ratio(ratio)
        config = self.config
        remove = windows_to_remove(layout.frames, self._windows(layout), removed, config.prune_from_frame)
        return STTSBudget(np.int32(remove))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly the tokens of the windows that stay."""
        windows = layout.frames * self._windows(layout) - int(self.budget(layout, ratio).remove)
        return windows * self.config.window**2

    def _windows(self, layout: Layout) -> int:
        side = self.config.window
        if layout.grid[0] % side or layout.grid[1] % side:
            raise JvidpruneError(
                f"windows of {side}x{side} tokens do not divide a grid of {layout.grid[0]}x{layout.grid[1]} tokens."
            )
        return layout.tokens // side**2

    def plan(self, video: VideoTokens, budget: STTSBudget, *, capacity: int) -> Plan:
        """Which tokens stay by the scores that the video carries.

        Raises:
          JvidpruneError: another method than the scorer.
        """
        if self.method != "scorer":
            raise JvidpruneError(f"stts with method {self.method!r} decides inside the tower and has no plan.")
        (height, width), side = video.grid, self.config.window
        examples = one_video(video.features.shape[0], budget.remove, video.frame_mask)
        keep = keep_windows(video.evidence["tower_scores"], examples)
        row, column = np.divmod(np.arange(height * width), width)
        return selection_plan(keep[:, row // side * (width // side) + column // side].reshape(-1), capacity)

    def run_budgets(self, video: VideoTokens, budgets: STTSBudget, *, capacity: int, diagnostics: bool) -> Reduced:
        """`Reduced` for every entry of a stacked budget, from the blocks behind the pruning.

        Raises:
          JvidpruneError: not bound to a model.
        """
        if self.model is None:
            raise JvidpruneError("stts is bound to no model: take it from VideoLLM.reducer, or bind it.")
        remove = jnp.asarray(budgets.remove, jnp.int32)
        reduced = self.model.finish(video, remove, self.config, capacity=capacity, seed=self.seed)
        return reduced
