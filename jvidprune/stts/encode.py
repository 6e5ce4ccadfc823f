"""Videos to the tokens that STTS leaves, for each kind of tower; everything behind the tower runs on kept tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families
from jvidprune.models.qwen.tower import Grid, GridVit
from jvidprune.ops.compact import compact
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.grid_tower import GridTower
from jvidprune.stts.scorer import Scorer
from jvidprune.stts.select import Examples
from jvidprune.stts.siglip import SiglipTower
from jvidprune.stts.tower import Scored, Tower, run_tower
from jvidprune.stts.windows import Windows, merged_windows, pooled_windows, raster_windows


class PrunedTokens(NamedTuple):
    """The visual tokens that the language model reads, in raster order frame by frame.

    Attributes:
      tokens: (K, D), zeros on padding; K is static.
      index: (K,) int32 frame * L + token of each row, F * L on padding; L tokens of a frame unpruned.
      valid: (K,) bool, a prefix mask; all True where every budget is met exactly.
      loss: () float32 auxiliary loss with its coefficient, to be added to the language model's.
      scores: (F, P) float32 of the scorer, zeros for the baselines.
      keep: (F, P) windows that stay.
      deepstack: (K, S, D) DeepStack levels of the same tokens, of families that have such, or None.
    """

    tokens: Float[Array, "K D"]
    index: Int[Array, "K"]
    valid: Bool[Array, "K"]
    loss: Float[Array, ""]
    scores: Float[Array, "F P"]
    keep: Bool[Array, "F P"]
    deepstack: Any = None


class Encoder(Protocol):
    """A model's way from pixels to tokens, taken apart where STTS comes in.

    A tower of one's own needs these members and those of `tower.Tower`.
    """

    @property
    def tower(self) -> Tower:
        """The blocks."""
        ...

    @property
    def windows(self) -> Windows:
        """Of a frame."""
        ...

    @property
    def record(self) -> tuple[int, ...]:
        """Blocks whose outputs `connect` reads besides the last one's."""
        ...

    def embed(self, pixels: Array) -> Float[Array, "F N D"]:
        """What enters block 0."""
        ...

    def connect(self, out: Scored, index: Int[Array, "K"]) -> tuple[Float[Array, "K D"], Any]:
        """Tokens of the language model at frame * L + token, and their DeepStack levels or None."""
        ...


def encode(
    encoder: Encoder,
    pixels: Array,
    examples: Examples,
    config: STTSConfig,
    *,
    kept: int,
    scorer: Scorer | None = None,
    key: Array | None = None,
) -> PrunedTokens:
    """Frames to pruned tokens; pure, and differentiable in the modules of encoder and scorer, and in the pixels.

    Several videos go through in one call as examples on the flat axis; where each keeps the same number of windows,
    `tokens.reshape(videos, -1, D)` parts them again.

    Args:
      encoder: of `encoder_of`.
      pixels: what the encoder embeds: (F, 3, S, S) normalised frames, or (F * N, V) patch vectors where frames
        may have any size.
      examples: `select.one_video` or `packed_examples`, with the windows to remove; frames are grid frames there.
      config: settings.
      kept: static bound of the windows that stay, see `tower.run_tower`.
      scorer: for method "scorer".
      key: for method "random".

    Raises:
      JvidpruneError: pixels of the wrong size, or settings that do not fit the tower.
    """
    out = run_tower(
        encoder.tower,
        encoder.embed(pixels),
        encoder.windows,
        examples,
        config,
        kept=kept,
        scorer=scorer,
        key=key,
        record=encoder.record,
    )
    return connect_kept(encoder, out, kept)


def connect_kept(encoder: Encoder, out: Scored, kept: int) -> PrunedTokens:
    """The tokens of kept windows alone; equal to connecting everything and dropping the rest."""
    index, valid = kept_tokens(out.keep, encoder.windows, kept)
    tokens, deepstack = encoder.connect(out, jnp.minimum(index, out.keep.shape[0] * encoder.windows.token_count - 1))
    tokens = jnp.where(valid[:, None], tokens, 0)
    deepstack = None if deepstack is None else jnp.where(valid[:, None, None], deepstack, 0)
    return PrunedTokens(tokens, index, valid, out.loss, out.scores, out.keep, deepstack)


def kept_tokens(keep: Bool[Array, "F P"], windows: Windows, kept: int) -> tuple[Int[Array, "K"], Bool[Array, "K"]]:
    """(K,) frame * L + token of the tokens of kept windows, ascending, and which rows are in use."""
    capacity = min(kept, keep.size) * windows.tokens_each
    index, valid, _ = compact(keep[:, windows.of_token].reshape(-1), capacity)
    return index.astype(jnp.int32), valid


def _gather_patches(x: Array, windows: Windows, index: Array) -> Array:
    """(K, g, D) patches of each token."""
    frame, token = jnp.divmod(index, windows.token_count)
    patches = jnp.asarray(windows.token_patches)[token] + (frame * windows.patch_count)[:, None]
    return x.reshape(-1, x.shape[-1])[patches]


def pooling_windows(config: Any, window: int = 1) -> Windows:
    """The windows of a tower behind which tokens are projected and pooled: those of the pooling.

    Args:
      config: of a model whose family has the connection "projector".
      window: tokens on a side.

    Raises:
      JvidpruneError: windows that do not divide the grid of tokens.
    """
    return pooled_windows(config.vision.side, config.pool, window)


@dataclasses.dataclass(frozen=True, eq=False)
class ProjectorEncoder:
    """A projector behind the tower (LLaVA): it and the spatial pooling see kept tokens alone."""

    model: Any
    window: int = 1
    record: tuple[int, ...] = ()

    @property
    def tower(self) -> SiglipTower:
        """The SigLIP tower."""
        return SiglipTower(self.model.vision)

    @property
    def windows(self) -> Windows:
        """Those of the pooling."""
        return pooling_windows(self.model.config, self.window)

    def embed(self, pixels: Float[Array, "F 3 S S"]) -> Float[Array, "F N D"]:
        """Patches with positions."""
        return self.tower.embed(pixels)

    def connect(self, out: Scored, index: Int[Array, "K"]) -> tuple[Float[Array, "K D"], Any]:
        """Projected patches, pooled."""
        windows = self.windows
        projected = self.model.projector(_gather_patches(out.hidden, windows, index))
        if self.model.config.pool == "max":
            return projected.max(axis=1), None
        return windows.pool(projected, index % windows.token_count), None


@dataclasses.dataclass(frozen=True, eq=False)
class GridEncoder:
    """Frames of any size (Qwen-VL, VideoLLaMA3): windows are merge blocks; what joins them sees kept tokens alone."""

    model: Any
    grid: Grid
    window: int = 1

    @property
    def record(self) -> tuple[int, ...]:
        """The blocks of DeepStack levels."""
        return self.model.config.vision.taps

    @property
    def tower(self) -> GridTower:
        """The tower at this grid."""
        return GridTower(self.model.vision, self.grid)

    @property
    def windows(self) -> Windows:
        """Merge blocks."""
        vision, (_, rows, columns) = self.model.config.vision, self.grid
        return merged_windows(rows // vision.merge, columns // vision.merge, vision.unit, self.window)

    def embed(self, pixels: Float[Array, "P V"]) -> Float[Array, "F N D"]:
        """The processor's patch vectors, frame by frame, with positions."""
        self.model.config.vision.check_grid(self.grid, pixels.shape)
        return self.tower.embed(pixels.reshape(self.grid[0], self.grid[1] * self.grid[2], -1))

    def connect(self, out: Scored, index: Int[Array, "K"]) -> tuple[Float[Array, "K D"], Any]:
        """Merged tokens, and the DeepStack levels where blocks are recorded for them."""
        windows, vision = self.windows, self.model.vision
        tokens = vision.merge(_gather_patches(out.hidden, windows, index))[:, 0]
        if not self.record:
            return tokens, None
        taps = jnp.stack([_gather_patches(out.recorded[block], windows, index) for block in self.record])
        return tokens, jnp.moveaxis(vision.merge_taps(taps)[:, :, 0], 0, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class ConnectorEncoder:
    """Attention over windows (Molmo2, what STTS was made for): the connector pools kept windows alone.

    The placeholder's embedding is not added yet, as in the model's own `encode`.
    """

    model: Any
    window: int = 1

    @property
    def record(self) -> tuple[int, ...]:
        """The blocks that the connector joins."""
        return tuple(self.model.config.connector.blocks)

    @property
    def tower(self) -> SiglipTower:
        """The SigLIP 2 tower."""
        return SiglipTower(self.model.vision)

    @property
    def windows(self) -> Windows:
        """The connector's windows; `window` of them on a side."""
        config = self.model.config
        return raster_windows(config.vision.side, config.connector.pool, self.window)

    def embed(self, pixels: Float[Array, "F 3 S S"]) -> Float[Array, "F N D"]:
        """Patches with positions."""
        return self.tower.embed(pixels)

    def connect(self, out: Scored, index: Int[Array, "K"]) -> tuple[Float[Array, "K D"], Any]:
        """The connector on one window a row."""
        joined = jnp.concatenate(
            [_gather_patches(out.recorded[block], self.windows, index) for block in self.record], axis=-1
        )
        return self.model.connector(joined, np.arange(joined.shape[1], dtype=np.int32)[None])[:, 0], None


_BY_CONNECTION: dict[str, Callable[..., Encoder]] = {
    "projector": ProjectorEncoder,
    "mergers": GridEncoder,
    "pooled": GridEncoder,
    "connector": ConnectorEncoder,
}
"""What takes a family apart, by what stands between its tower and its language model (`models.family.Connection`)."""


def encoder_of(model: Any, window: int = 1, grid: Grid | None = None) -> Encoder:
    """The encoder of a model, told by its family's connection.

    Args:
      model: of any family.
      window: tokens of the language model on a side of a window.
      grid: (T, Hp, Wp) in patches, for towers that read frames of any size.

    Raises:
      JvidpruneError: a family without one, or such a tower without a grid.
    """
    family = model.config.family
    connection = families.get(family).connection
    if connection == "shuffled":
        raise JvidpruneError(
            f"STTS packs patches of several frames into one row, which leaves the class token of {family}'s tower no "
            "place: it runs on the other families."
        )
    made = _BY_CONNECTION.get(connection)
    if made is None or isinstance(model.vision, GridVit) != (made is GridEncoder):
        raise JvidpruneError(f"STTS knows no tower of {family}.")
    if made is not GridEncoder:
        return made(model, window)
    if grid is None:
        raise JvidpruneError(f"the windows of {family} depend on the grid of the video, which was not given.")
    return made(model, grid, window)
