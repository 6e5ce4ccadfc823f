"""A video that was encoded and reduced once and can be asked about any number of times."""

import dataclasses
import operator
from collections.abc import Sequence

import jax
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.reducers.protocol import (
    PositionRule,
    PromptRules,
    Reducer,
    check_positions,
    inner_stages,
    position_rule,
    prompt_rules,
    title_of,
)
from jvidprune.reducers.run import sweep
from jvidprune.tokens import InnerStage, Reduced, VideoTokens
from jvidprune.video.decode import Clip


@dataclasses.dataclass(frozen=True)
class ReducedVideo:
    """Encoded tokens with what a reducer made of them.

    Attributes:
      video: the encoded tokens.
      reduced: the kept ones.
      reducer: what reduced them.
      ratio: retention ratio.
      inner: the reducer's stages inside the language model.
      clip: what was encoded, for families that write the times of frames into the prompt.
      positions: rule of the kept tokens' positions that was asked for, whatever the method; None leaves it to the
        model and the method, see `reducers.protocol.position_rule`.
    """

    video: VideoTokens
    reduced: Reduced
    reducer: Reducer
    ratio: float
    inner: tuple[InnerStage, ...]
    clip: Clip | None = None
    positions: PositionRule | None = None

    @property
    def rules(self) -> PromptRules:
        """How the reducer's tokens stand in a prompt."""
        return prompt_rules(self.reducer)

    @property
    def kept(self) -> int:
        """Tokens kept."""
        return int(self.reduced.count)

    @property
    def visual(self) -> int:
        """Tokens there were."""
        return int(self.video.frame_mask.sum()) * self.video.features.shape[1]

    @property
    def capacity(self) -> int:
        """Rows of the reduced tokens, padding included."""
        return self.reduced.tokens.shape[0]

    @property
    def title(self) -> str:
        """Name of the method."""
        return title_of(self.reducer)


def reduce_video(
    video: VideoTokens,
    reducer: Reducer,
    ratio: float,
    clip: Clip | None = None,
    *,
    diagnostics: bool = False,
    positions: PositionRule | None = None,
) -> ReducedVideo:
    """Reduces encoded tokens and waits for the result; with `diagnostics` it can be drawn as well as asked about.

    Raises:
      JvidpruneError: an impossible ratio or budget, or missing evidence.
    """
    return sweep_video(video, reducer, [ratio], clip, diagnostics=diagnostics, positions=positions)[0]


def sweep_video(
    video: VideoTokens,
    reducer: Reducer,
    ratios: Sequence[float],
    clip: Clip | None = None,
    *,
    diagnostics: bool = False,
    positions: PositionRule | None = None,
) -> list[ReducedVideo]:
    """Reduces encoded tokens to several retention ratios in one compiled program, with diagnostics if they are wanted.

    Raises:
      JvidpruneError: an impossible ratio or budget, missing evidence, or a rule of positions that is none.
    """
    check_positions(positions)
    stages = [inner_stages(reducer, ratio) for ratio in ratios]
    in_blocks = any(stage.rule.in_blocks for inner in stages for stage in inner)
    shown = diagnostics or in_blocks or prompt_rules(reducer).official_places
    swept = jax.block_until_ready(sweep(reducer, video, ratios, diagnostics=shown))
    return [
        ReducedVideo(video, jax.tree.map(operator.itemgetter(i), swept), reducer, float(ratio), inner, clip, positions)
        for i, (ratio, inner) in enumerate(zip(ratios, stages, strict=True))
    ]


def shared_stages(videos: Sequence[ReducedVideo]) -> tuple[InnerStage, ...]:
    """The stages inside the language model, which all videos of a prompt must agree on.

    Raises:
      JvidpruneError: no video, or videos with different stages.
    """
    if not videos:
        raise JvidpruneError("a question needs at least one video.")
    if any(video.inner != videos[0].inner for video in videos):
        titles = ", ".join(video.title for video in videos)
        raise JvidpruneError(f"the videos of one prompt have different stages inside the language model ({titles}).")
    return videos[0].inner


def prompt_positions(
    videos: Sequence[ReducedVideo],
    *,
    asked: PositionRule | None = None,
    declared: PositionRule | None = None,
    reference: PositionRule | None = None,
) -> PositionRule:
    """The rule of positions of a prompt, see `reducers.protocol.position_rule`.

    Raises:
      JvidpruneError: videos that were told different rules.
    """
    reducers = [one.reducer for one in videos]
    told: list[PositionRule | None] = [one.positions for one in videos]
    return position_rule(reducers, told=told, asked=asked, declared=declared, reference=reference)


def shared_blocks(videos: Sequence[ReducedVideo]) -> np.ndarray | None:
    """(K,) group of each row of all videos' reduced tokens, for stages that keep a share of every group."""
    if "block" not in videos[0].reduced.diagnostics:
        return None
    parts, first = [], 0
    for video in videos:
        block = np.asarray(video.reduced.diagnostics["block"])
        parts.append(np.where(block >= 0, block + first, -1))
        first = int(parts[-1].max(initial=first - 1)) + 1
    return np.concatenate(parts)
