"""One reduction on the host, ready to be drawn."""

import dataclasses

import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.llm.encoded import ReducedVideo
from jvidprune.llm.inside import InsideStage, StageKind
from jvidprune.reducers.controls import spread
from jvidprune.tokens import Reduced, place_fates


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a reducer did to one video.

    Attributes:
      method: shown name.
      ratio: retention ratio asked for.
      frames: T.
      grid: (h, w), h * w = N.
      index: (R,) global id frame * N + token of each output row, valid rows only.
      mass: (R,) source tokens in each row.
      slot: (T * N,) output row of each source token, the one that took most of it; -1 where dropped.
      flow: (T * N, F) global ids that a token went to (parent in a merge tree, targets of a transport plan), -1 for
        none.
      share: (T * N, F) part of the token that each of them took, in [0, 1].
      sink: (T * N,) sink score in [0, 1], or None.
      whole: tokens of the video where the grid is that of smaller frames; None for T * N.
      stage: of a stage inside the language model its kind; None for a reduction before it.
      restored: (T * N,) bool tokens that are back in this stage, or None.
    """

    method: str
    ratio: float
    frames: int
    grid: tuple[int, int]
    index: np.ndarray
    mass: np.ndarray
    slot: np.ndarray
    flow: np.ndarray
    share: np.ndarray
    sink: np.ndarray | None = None
    whole: int | None = None
    stage: StageKind | None = None
    restored: np.ndarray | None = None

    @classmethod
    def from_reduced(
        cls, reduced: Reduced, *, method: str, ratio: float, frames: int, grid: tuple[int, int]
    ) -> "Decision":
        """Host copy of one `Reduced`.

        Of its diagnostics `sink_score` (T, N) is read, and either `flow` and `flow_share` (T * N, F) or `link` (T, N),
        one target that takes all.
        """
        valid = np.asarray(reduced.valid)
        total = frames * grid[0] * grid[1]
        shown = reduced.diagnostics
        slot = np.asarray(reduced.slot)[:total]
        flow = np.asarray(shown.get("flow", shown.get("link", np.full(total, -1)))).reshape(total, -1)
        # A match that nothing of a token went through is no flow.
        flow = np.where((slot >= 0)[:, None], flow, -1)
        share = np.asarray(shown.get("flow_share", np.ones(flow.shape)), np.float32) * (flow >= 0)
        sink = np.asarray(shown["sink_score"], np.float32).reshape(-1) if "sink_score" in shown else None
        return cls(
            method,
            ratio,
            frames,
            grid,
            np.asarray(reduced.index)[valid],
            np.asarray(reduced.mass)[valid],
            slot,
            flow,
            share,
            sink,
        )

    @property
    def tokens_per_frame(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    @property
    def count(self) -> int:
        """Output tokens."""
        return len(self.index)

    @property
    def total(self) -> int:
        """Tokens of the video."""
        return self.frames * self.tokens_per_frame if self.whole is None else self.whole

    @property
    def achieved(self) -> float:
        """Output tokens as a share of all tokens."""
        return self.count / self.total

    def kept(self) -> np.ndarray:
        """(T, N) bool, places that stand for an output token."""
        flags = np.zeros(self.frames * self.tokens_per_frame, bool)
        flags[self.index] = True
        return flags.reshape(self.frames, -1)

    def per_frame(self) -> np.ndarray:
        """(T,) output tokens of each frame, repeats counted."""
        return np.bincount(self.index // self.tokens_per_frame, minlength=self.frames)

    def fates(self) -> dict[str, int]:
        """How many places are kept, merged into a kept one, and dropped; together all of them."""
        kept, merged, _ = place_fates(self.index, self.slot)
        return {"kept": kept, "merged": merged, "dropped": self.total - kept - merged}

    def summary(self) -> str:
        """One line for people."""
        fates = self.fates()
        rows = f"{self.count:,} of {self.total:,} tokens ({self.achieved:.1%})"
        if self.stage is not None:
            back = 0 if self.restored is None else int(self.restored.sum())
            parts = [rows, *[f"{back:,} back again"] * (back > 0)]
            parts += [f"{fates['merged']:,} travel in them"] * (fates["merged"] > 0)
            return " · ".join([*parts, *[f"{fates['dropped']:,} pass it by"] * (self.stage == "routed")])
        return f"{rows} · {fates['merged']:,} merged · {fates['dropped']:,} dropped"


def decision_of(one: ReducedVideo, method: str) -> Decision:
    """A reduced video as it is drawn on the frames of the whole one.

    Smaller frames are drawn with their own grid. Of fewer frames each stands at the frame in the middle of its stretch.

    Args:
      one: with diagnostics where it has lines or rings to show.
      method: shown name.

    Raises:
      JvidpruneError: a picture of several maps, which are no frames.
    """
    if one.beside:
        raise JvidpruneError("what is kept of a picture of several maps cannot be drawn; that of videos can.")
    tokens, whole = one.video.tokens, one.whole
    frames, grid = tokens.features.shape[0], tokens.grid
    made = Decision.from_reduced(one.reduced, method=method, ratio=one.ratio, frames=frames, grid=grid)
    if whole is None or whole.total == frames * made.tokens_per_frame:
        return made
    if frames < whole.frames:
        n = made.tokens_per_frame
        place = (spread(whole.frames, frames)[:, None] * n + np.arange(n)).reshape(-1)
        made = dataclasses.replace(made, frames=whole.frames, index=place[made.index])
        slot, nothing = np.full(whole.frames * n, -1), np.full((whole.frames * n, 1), -1)
        slot[made.index] = np.arange(made.count)
        made = dataclasses.replace(made, slot=slot, flow=nothing, share=np.zeros(nothing.shape, np.float32))
    return dataclasses.replace(made, whole=whole.total)


def stage_decision(stage: InsideStage, ratio: float, frames: int, grid: tuple[int, int]) -> Decision:
    """A stage inside the language model as it is drawn: its tokens are kept, those that travel in a mean are merged.

    Args:
      stage: of `llm.inside.trace`.
      ratio: retention ratio asked for.
      frames, grid: of the video's tokens.
    """
    index, total = np.flatnonzero(stage.kept), stage.kept.size
    number = np.full(total + 1, -1)
    number[index] = np.arange(len(index))
    slot = number[stage.row]
    nothing = np.full((total, 1), -1)
    share = np.zeros(nothing.shape, np.float32)
    mass = np.bincount(slot[slot >= 0], minlength=len(index))
    made = Decision(stage.name, ratio, frames, grid, index, mass, slot, nothing, share)
    return dataclasses.replace(made, stage=stage.kind, restored=stage.restored)
