"""What a family needs around its model in one convention: prompts, frames, and what its tower reads."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jvidprune.fields import NO_SETTING
from jvidprune.models.checkpoint.processor import BICUBIC, BILINEAR, channels, resizes, square
from jvidprune.models.positions import MropeRule
from jvidprune.ops.newline import NewlineKind, NewlineRows
from jvidprune.procedural.settings import BenchmarkSetting
from jvidprune.tokens import Layout, VideoTokens
from jvidprune.video.preprocess import HALF, Channels, Patches, llava_pixels
from jvidprune.video.resize import Filter
from jvidprune.video.sampling import RATE_RULES, Rule
from jvidprune.video.tiles import Tiles
from jvidprune.video.wish import FrameWish

PicturePixels = Callable[[np.ndarray], np.ndarray | Patches | Tiles]
"""From a still picture, (1, H, W, 3) uint8, to what the tower reads."""

Convention = Literal["released", "transformers", "lmms-eval"]
"""Whose way from a file to a model, see `llm.conventions`."""

Markers = Literal["blocks", "around"]
"""Where Qwen3-VL has vision markers: around each grid frame ("blocks", as transformers 4.57, the format of its
training), or besides around all of them, where the template has them and transformers 5 leaves them."""

Positions = Literal["renumbered", "original"]
"""A rule of kept tokens' positions, see `reducers.prompt_rules.PositionRule`."""


class PictureShape(NamedTuple):
    """What a family makes of a still picture.

    Attributes:
      layouts: of the tokens, in the order of the prompt: of one grid frame, of tiles of one size that are frames, or of
        several maps that stand behind each other, each reduced by itself.
      frames: that the tower reads.
    """

    layouts: tuple[Layout, ...]
    frames: int = 1

    @property
    def total(self) -> int:
        """Tokens."""
        return sum(layout.total for layout in self.layouts)


class PictureMap(NamedTuple):
    """Tokens of a still picture that are reduced by themselves.

    Attributes:
      tokens: with evidence.
      newline: layout of newline embeddings among them, None leaves it to the reducer and the family.
    """

    tokens: VideoTokens
    newline: NewlineKind | None = None


@dataclasses.dataclass(frozen=True)
class FamilySettings:
    """What a family needs around its model, in one convention.

    Attributes:
      template: prompt template, one of the families' by name, or "chat" for the checkpoint's own.
      newline: where newline embeddings go among the kept tokens.
      newline_rows: with a grid layout, rows that get one.
      frames: frames its published evaluations use.
      rule: frame sampling rule of `jvidprune.video.sampling`, which also says by which rule a rate is sampled.
      pixels: the model's config and the settings of its folder's video processor to a function from (T, H, W, 3) uint8
        frames to what the tower reads.
      prompt: how videos stand in a prompt, a name of `llm.prompts.registry.BUILDERS`: newline embeddings ("newlines",
        LLaVA), three-axis positions, time stamps and vision markers ("mrope", the Qwen-VL families), or frame by
        frame behind their times ("frames", Molmo2, and without markers "times", VideoLLaMA3) or numbers ("numbered",
        InternVL).
      grid: rows and columns of tokens of a grid frame, from the model's config, frames, height and width in pixels and
        the settings of the folder's video processor; None where every video has the config's grid.
      sized: like `pixels`, to a function from frames and a grid (h, w) of tokens to what the tower reads: the frames
        resized once, to that grid, whatever the limits of the processor. None where every video has the config's grid.
      writes_times: a prompt holds the times of frames, as text or as positions, so that they must be known.
      mrope_rule: where a video and what follows it stand on three axes, see `models.positions.MropeRule`; None where
        positions have one axis.
      own_chat: the chat template of a folder goes before `template` where it carries one.
      begins: a prompt starts with the tokenizer's token for the beginning of a text, or of its end if it has none.
      fps: rate that the family or its folder's video processor samples at, before `frames`; None for a number of
        frames.
      pictures: still pictures are read: as one grid frame where towers take frames of any size, else as tiles.
      picture_pixels: like `pixels`, for still pictures, (1, H, W, 3), and the settings of the folder's image processor;
        None reads a picture as a video of one frame.
      picture_shape: what becomes of a picture, from the model's config, height and width in pixels and the settings of
        the folder's image processor, with `picture_pixels`.
      picture_maps: the model, tokens of tiles and the tiles to the maps of a picture, where these are not the tiles
        themselves.
      picture_config: the model's config to that which pictures are encoded with, where it is another one (VideoLLaMA3,
        where every patch of a picture is a token); None where it is the same.
      fewest, most, fastest: limits that a folder's video processor sets, see `FrameWish`.
      positions: rule of kept tokens' positions that was asked for, whatever the method; see
        `reducers.prompt_rules.position_rule`, as for the next two.
      declared_positions: the rule that the checkpoint's folder declares.
      reference_positions: the rule of all methods' references on this family, None where they differ.
      markers: where vision markers stand, see `Markers`.
      convention: that these settings are of.
      benchmark: setting of the procedural benchmark that the checkpoint's folder declares, else the default one. Like
        the next, it decides what is asked, which a task's fingerprint tells, and not how a model answers.
      categories: of that setting, those that the folder says the model is good enough for; None where it says nothing.
    """

    template: str
    newline: NewlineKind
    newline_rows: NewlineRows
    frames: int
    rule: Rule
    pixels: Callable[[Any, Mapping[str, Any]], Callable[[np.ndarray], np.ndarray | Patches]]
    prompt: str = "newlines"
    grid: Callable[[Any, int, int, int, Mapping[str, Any]], tuple[int, int]] | None = None
    sized: Callable[[Any, Mapping[str, Any]], Callable[[np.ndarray, tuple[int, int]], Patches]] | None = None
    writes_times: bool = False
    mrope_rule: MropeRule | None = None
    own_chat: bool = False
    begins: bool = False
    pictures: bool = False
    picture_pixels: Callable[[Any, Mapping[str, Any]], PicturePixels] | None = None
    picture_shape: Callable[[Any, int, int, Mapping[str, Any]], PictureShape] | None = None
    picture_maps: Callable[[Any, VideoTokens, Tiles], tuple[PictureMap, ...]] | None = None
    picture_config: Callable[[Any], Any] | None = None
    fps: float | None = None
    fewest: int | None = None
    most: int | None = None
    fastest: float | None = None
    positions: Positions | None = None
    declared_positions: Positions | None = None
    reference_positions: Positions | None = None
    markers: Markers = "blocks"
    convention: Convention = "released"
    benchmark: BenchmarkSetting = dataclasses.field(default="default", metadata=NO_SETTING)
    categories: tuple[str, ...] | None = dataclasses.field(default=None, metadata=NO_SETTING)

    def wish(self, frames: int | None = None, fps: float | None = None) -> FrameWish:
        """What is read of a video: so many frames, a rate with `frames` as the most, or what the family reads.

        The limits of the folder hold for rates and for the family's own number of frames; a number that is asked for
        goes before them. A rate that the family samples up to a number of frames (LLaVA-Video, Molmo2) gives `frames`
        of the settings at most, where none are asked for.

        Raises:
          JvidpruneError: no frame, or no rate above 0.
        """
        if frames is None and fps is None:
            fps = self.fps
            if fps is None:
                frames = max(self.frames, self.fewest or 1)
                frames = min(frames, self.most or frames)
        if fps is None:
            return FrameWish(frames, rule=self.rule, fastest=self.fastest, pictures=self.pictures)
        if frames is None and RATE_RULES.get(self.rule, self.rule) in ("llava_video_upto", "molmo2"):
            frames = self.frames
        return FrameWish(
            frames, fps, self.rule, fewest=self.fewest, most=self.most, fastest=self.fastest, pictures=self.pictures
        )

    def newline_of(self, config: Any) -> NewlineKind:
        """Where newline embeddings go: as the checkpoint's config says, else as the family has it."""
        return getattr(config, "newline", self.newline)

    def layout(self, config: Any, frames: int, size: tuple[int, int], given: Mapping[str, Any]) -> Layout:
        """Grid frames and tokens that the tower makes of a video.

        Args:
          config: of the model.
          frames: that are read.
          size: height and width of a frame in pixels.
          given: the settings of the folder's video processor.

        Raises:
          JvidpruneError: a size that the family's rule refuses.
        """
        if self.grid is None:
            return Layout(frames, config.grid, config.unpooled_grid)
        return Layout(-(-frames // config.vision.pair), self.grid(config, frames, *size, given))

    def shape_of_picture(
        self, config: Any, size: tuple[int, int], video: Mapping[str, Any], image: Mapping[str, Any]
    ) -> PictureShape:
        """What the tower makes of a still picture.

        Args:
          config: of the model.
          size: height and width in pixels.
          video, image: the settings of the folder's video and image processors.

        Raises:
          JvidpruneError: a size that the family's rule refuses.
        """
        if self.picture_shape is None:
            return PictureShape((self.layout(config, 1, size, video),))
        return self.picture_shape(self.config_of_pictures(config), *size, image)

    def config_of_pictures(self, config: Any) -> Any:
        """The config that pictures are encoded with."""
        return config if self.picture_config is None else self.picture_config(config)


def squashed(
    config: Any,
    given: Mapping[str, Any],
    *,
    filter: Filter = "torchvision",
    mean: Channels = HALF,
    std: Channels = HALF,
) -> Callable[[np.ndarray], np.ndarray]:
    """Frames squashed to the square that the tower reads, with what the folder's video processor says.

    Args:
      config: of the model.
      given: the settings of the folder's video processor.
      filter: that frames are resized with.
      mean, std: what is subtracted and divided by where the folder does not say.

    Raises:
      JvidpruneError: settings that make no sense, or another size than the tower's.
    """
    mean, std = channels(given, mean, std)
    size = square(given, config.vision.image_size)
    again = resizes(given, BILINEAR if filter == "bilinear" else BICUBIC)
    return functools.partial(llava_pixels, size=size, mean=mean, std=std, filter=filter, do_resize=again)
