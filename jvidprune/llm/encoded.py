"""A video that was encoded once, and what a reducer made of it: both can be asked about any number of times."""

import dataclasses
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.ops import compact
from jvidprune.ops.newline import NewlineKind
from jvidprune.reducers.programs import bucket_capacity
from jvidprune.reducers.prompt_rules import PositionRule, PromptRules, check_positions, position_rule
from jvidprune.reducers.protocol import Reducer, inner_stages, of_frames, prompt_rules, title_of, with_defaults
from jvidprune.reducers.run import sweep
from jvidprune.tokens import InnerStage, Layout, Reduced, VideoTokens
from jvidprune.video.decode import Clip


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedVideo:
    """The tokens of a video or picture together with what they were made of, from `VideoLLM.encode`.

    Tokens of one's own go in as `EncodedVideo(tokens)`; evidence that they lack cannot be computed then, and families
    that write times into their prompts cannot be asked about them.

    Attributes:
      tokens: features and evidence.
      source: what was encoded: a `Clip`, or (T, H, W, 3) uint8 frames whose times are not known; None where it was not
        kept.
      question: what the evidence "text" holds the embeddings of, if it is there.
      again: encodes other frames of the source, as a layout says, for methods that make tokens of these; None where the
        source was not kept.
      beside: further maps of the same picture, which stand behind this one in a prompt and are reduced by themselves.
      newline: layout of newline embeddings among the tokens of a picture; None leaves it to the reducer and the family.
    """

    tokens: VideoTokens
    source: Clip | np.ndarray | None = dataclasses.field(default=None, repr=False)
    question: str | None = None
    again: Callable[[Layout], "EncodedVideo"] | None = dataclasses.field(default=None, repr=False)
    beside: tuple["EncodedVideo", ...] = ()
    newline: NewlineKind | None = None

    @property
    def maps(self) -> tuple["EncodedVideo", ...]:
        """This map and those beside it, each by itself: a video is one."""
        return dataclasses.replace(self, beside=()), *self.beside

    @property
    def layout(self) -> Layout:
        """Of this map, frames that fill up not counted."""
        real, slots = int(self.tokens.frame_mask.sum()), self.tokens.features.shape[0]
        return self.tokens.layout(None if real == slots else real)

    @property
    def total(self) -> int:
        """Tokens, of all maps."""
        return sum(one.layout.total for one in self.maps)

    @property
    def picture(self) -> bool:
        """Whether it is a still picture, no video."""
        return self.clip is not None and self.clip.picture

    @property
    def clip(self) -> Clip | None:
        """Frames with their times, None where these are not known."""
        return self.source if isinstance(self.source, Clip) else None

    @property
    def frames(self) -> np.ndarray | None:
        """(T, H, W, 3) uint8, None where they were not kept."""
        return self.source.frames if isinstance(self.source, Clip) else self.source


@dataclasses.dataclass(frozen=True)
class ReducedVideo:
    """An encoded video with what a reducer made of it.

    Attributes:
      video: the encoded video; of a method that makes tokens of other frames, these.
      reduced: the kept tokens.
      reducer: what reduced them.
      ratio: retention ratio.
      inner: the reducer's stages inside the language model.
      positions: rule of the kept tokens' positions that was asked for, whatever the method; None leaves it to the
        model and the method, see `reducers.prompt_rules.position_rule`.
      whole: layout of the whole video, where `video` holds other frames of it.
      beside: the further maps of the same picture, reduced by themselves.
    """

    video: EncodedVideo
    reduced: Reduced
    reducer: Reducer
    ratio: float
    inner: tuple[InnerStage, ...]
    positions: PositionRule | None = None
    whole: Layout | None = None
    beside: tuple["ReducedVideo", ...] = ()

    @property
    def maps(self) -> tuple["ReducedVideo", ...]:
        """This map and those beside it, each by itself: a video is one."""
        return dataclasses.replace(self, video=self.video.maps[0], beside=()), *self.beside

    @property
    def rules(self) -> PromptRules:
        """How the reducer's tokens stand in a prompt."""
        return prompt_rules(self.reducer)

    def newline_layout(self, kind: NewlineKind) -> NewlineKind:
        """Where newline embeddings stand: a picture's own way, else what the reducer declares, else the family's."""
        return self.video.newline or self.rules.newline_layout(kind)

    @property
    def kept(self) -> int:
        """Tokens kept, of all maps."""
        return int(self.reduced.count) + sum(one.kept for one in self.beside)

    @property
    def visual(self) -> int:
        """Tokens there were, or would have been, of all maps."""
        return self.video.total if self.whole is None else self.whole.total

    @property
    def capacity(self) -> int:
        """Rows of the reduced tokens of this map, padding included."""
        return self.reduced.tokens.shape[0]

    @property
    def title(self) -> str:
        """Name of the method."""
        return title_of(self.reducer)


def reduce_video(
    video: EncodedVideo,
    reducer: Reducer,
    ratio: float,
    *,
    diagnostics: bool = False,
    positions: PositionRule | None = None,
) -> ReducedVideo:
    """Reduces an encoded video and waits for the result; with `diagnostics` it can be drawn as well as asked about.

    Raises:
      JvidpruneError: an impossible ratio or budget, or missing evidence.
    """
    return sweep_video(video, reducer, [ratio], diagnostics=diagnostics, positions=positions)[0]


def sweep_video(
    video: EncodedVideo,
    reducer: Reducer,
    ratios: Sequence[float],
    *,
    diagnostics: bool = False,
    positions: PositionRule | None = None,
) -> list[ReducedVideo]:
    """Reduces an encoded video to several retention ratios in one compiled program, with diagnostics if wanted.

    Raises:
      JvidpruneError: an impossible ratio or budget, missing evidence, a rule of positions that is none, or a method of
        other frames for a video whose frames were not kept, or one that `check_picture` refuses.
    """
    check_positions(positions)
    if video.picture:
        check_picture([one.layout for one in video.maps], reducer)
    if video.beside:
        each = [sweep_video(one, reducer, ratios, diagnostics=diagnostics, positions=positions) for one in video.maps]
        return [dataclasses.replace(first, video=video, beside=tuple(rest)) for first, *rest in zip(*each, strict=True)]
    if of_frames(reducer):
        return _encoded_again(video, reducer, ratios, positions)
    stages = [inner_stages(reducer, ratio) for ratio in ratios]
    shown = diagnostics or any(shows_diagnostics(reducer, inner) for inner in stages)
    swept = jax.block_until_ready(sweep(reducer, video.tokens, ratios, diagnostics=shown))
    return [
        ReducedVideo(video, jax.tree.map(operator.itemgetter(i), swept), reducer, float(ratio), inner, positions)
        for i, (ratio, inner) in enumerate(zip(ratios, stages, strict=True))
    ]


def check_picture(layouts: Sequence[Layout], reducer: Reducer) -> None:
    """Refuses a method that has no meaning on the tiles of a picture.

    Args:
      layouts: of its maps; of a map whose tiles are frames, with so many of these.
      reducer: the method.

    Raises:
      JvidpruneError: a method of time where several tiles are frames, which stand beside each other, or one that makes
        its own tokens of frames where there are several tiles or maps.
    """
    tiles, own = layouts[0].frames, with_defaults(reducer)
    if tiles > 1 and own.in_time:
        raise JvidpruneError(
            f"{title_of(reducer)} compares frames in time, but the {tiles} tiles of a picture stand beside each other: "
            "take a method of single frames, such as visionzip or divprune."
        )
    if (tiles > 1 or len(layouts) > 1) and own.tokens_from in ("tower", "frames"):
        raise JvidpruneError(
            f"{title_of(reducer)} makes tokens of frames itself, which it cannot of the tiles of a picture: take a "
            "method of tokens, such as visionzip or divprune."
        )


def maps_of(videos: Sequence[ReducedVideo]) -> list[ReducedVideo]:
    """All maps of all videos and pictures of a prompt, in its order."""
    return [one for video in videos for one in video.maps]


def shows_diagnostics(reducer: Reducer, inner: Sequence[InnerStage]) -> bool:
    """Whether a prompt with what a reducer made needs the reduction's diagnostics.

    Args:
      reducer: the method.
      inner: its stages inside the language model.
    """
    return any(stage.rule.in_blocks for stage in inner) or prompt_rules(reducer).official_places


def _encoded_again(
    video: EncodedVideo, reducer: Reducer, ratios: Sequence[float], positions: PositionRule | None
) -> list[ReducedVideo]:
    """Other frames of a video for every ratio, with all of their tokens, in as many rows each."""
    if video.again is None:
        raise JvidpruneError(
            f"{title_of(reducer)} makes tokens of other frames, and those of this video were not kept: encode its file "
            "or its frames."
        )
    layout, found = video.tokens.layout(), []
    for ratio in ratios:
        seen = with_defaults(reducer).seen(layout, ratio)
        found.append(video if seen == layout else video.again(seen))
    capacity = bucket_capacity(max(one.tokens.layout().total for one in found), layout.total)
    whole = [all_tokens(one, reducer, ratio, layout, capacity) for one, ratio in zip(found, ratios, strict=True)]
    return [dataclasses.replace(one, positions=positions) for one in whole]


def all_tokens(
    video: EncodedVideo, reducer: Reducer, ratio: float, whole: Layout, capacity: int | None = None
) -> ReducedVideo:
    """Other frames of a video as what a method makes of it: every token of them.

    Args:
      video: the other frames.
      reducer, ratio: that they were encoded for.
      whole: layout of the video itself.
      capacity: rows; by default one a token.
    """
    tokens = video.tokens
    total = tokens.layout().total
    plan = compact.selection_plan(jnp.ones(total, bool), total if capacity is None else capacity)
    reduced = jax.block_until_ready(compact.apply(plan, tokens.features))
    return ReducedVideo(video, reduced, reducer, float(ratio), inner_stages(reducer, ratio), whole=whole)


def clip_of(video: EncodedVideo) -> Clip:
    """The frames of a video with their times, where these are needed.

    Raises:
      JvidpruneError: they are not known.
    """
    if video.clip is None:
        raise JvidpruneError(
            "the times of this video's frames are needed and not known: encode its file, a Clip, or frames with fps= "
            "or times=."
        )
    return video.clip


def shared_stages(videos: Sequence[ReducedVideo]) -> tuple[InnerStage, ...]:
    """The stages inside the language model, which all videos of a prompt must agree on; none without a video.

    Raises:
      JvidpruneError: videos with different stages.
    """
    if not videos:
        return ()
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
    """The rule of positions of a prompt, see `reducers.prompt_rules.position_rule`.

    Raises:
      JvidpruneError: videos that were told different rules.
    """
    rules = [prompt_rules(one.reducer) for one in videos]
    told: list[PositionRule | None] = [one.positions for one in videos]
    return position_rule(rules, told=told, asked=asked, declared=declared, reference=reference)


def shared_places(videos: Sequence[ReducedVideo], newline: NewlineKind) -> np.ndarray:
    """(2, K) place of each row of all videos' reduced tokens in its frame, and of a newline that follows it.

    Newlines between rows have the places of a last column, one behind each frame that of the last row. Places of
    different videos differ.

    Args:
      videos: of one prompt.
      newline: layout of the newline embeddings.
    """
    parts, first = [], 0
    for video in videos:
        rows, columns = video.video.tokens.grid
        row, column = np.divmod(np.asarray(video.reduced.index) % (rows * columns), columns)
        ended = row if newline == "grid" else np.full_like(row, rows - 1)
        wide = columns + 1
        parts.append(first + np.stack([row * wide + column, ended * wide + columns]))
        first += rows * wide
    return np.concatenate(parts, axis=1).astype(np.int32)


def shared_frames(videos: Sequence[ReducedVideo]) -> np.ndarray:
    """(2, K) frame of each row of all videos' reduced tokens, and of a newline that follows it: the same.

    Frames of different videos differ.
    """
    parts, first = [], 0
    for video in videos:
        frames, tokens = video.video.tokens.features.shape[:2]
        frame = np.minimum(np.asarray(video.reduced.index) // tokens, frames - 1)
        parts.append(first + np.stack([frame, frame]))
        first += frames
    return np.concatenate(parts, axis=1).astype(np.int32)


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
