"""Models whose towers read frames of any size: what all share, and the class of both Qwen-VL families."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jvidprune.models.base import VideoConfig, VideoModel
from jvidprune.models.checkpoint.names import NameTable, Rule, affine, decoder_rules, norm
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.evidence import check_evidence, evidence_blocks, video_tokens
from jvidprune.models.layers import map_chunks
from jvidprune.models.positions import MropeRule, PromptPositions, VideoBlock, frame_blocks, prompt_positions
from jvidprune.models.qwen.tower import Grid, QwenVisionConfig, QwenVit
from jvidprune.tokens import VideoTokens
from jvidprune.video.preprocess import Patches

jax.tree_util.register_dataclass(Patches, data_fields=["values"], meta_fields=["grid"])

_EVIDENCE = frozenset(
    {"attention_last", "attention_mean_query", "attention_shallow", "attention_deep", "keys", "frame_embedding"}
)


@dataclasses.dataclass(frozen=True)
class QwenVLConfig(VideoConfig):
    """Everything static about a model.

    Attributes:
      vision: the tower.
      text: the language model.
      tokens_per_second: ids of the time axis in a second; 0 where time is told by text (Qwen3-VL).
      image_token, video_token: placeholder ids in prompts.
      vision_start, vision_end: ids around placeholders.
    """

    vision: QwenVisionConfig
    text: DecoderConfig
    tokens_per_second: float = 0.0
    image_token: int = 151655
    video_token: int = 151656
    vision_start: int = 151652
    vision_end: int = 151653

    family: ClassVar[str]

    @property
    def provides(self) -> frozenset[str]:
        """Evidence that a model of this config can attach."""
        return _EVIDENCE | (frozenset({"features_deepstack"}) if self.vision.taps else frozenset())

    def token_grid(self, grid: Grid) -> Grid:
        """(T, h, w) tokens of a grid of patches."""
        return grid[0], grid[1] // self.vision.merge, grid[2] // self.vision.merge

    def blocks(self, grid: Grid, seconds: float) -> list[VideoBlock]:
        """What shares an origin in a prompt: the video (Qwen2.5-VL), or each grid frame (Qwen3-VL)."""
        frames, height, width = self.token_grid(grid)
        if self.tokens_per_second:
            return [VideoBlock(frames, height, width, seconds)]
        return frame_blocks(frames, height, width)

    def positions(self, pieces: Any, rule: MropeRule = "released") -> PromptPositions:
        """`prompt_positions` with this model's time scale."""
        return prompt_positions(pieces, tokens_per_second=self.tokens_per_second, rule=rule)


def token_ids(raw: Mapping[str, Any]) -> dict[str, int]:
    """The special ids of a config.json; the published ones where it has none."""
    names = {"image_token": 151655, "video_token": 151656, "vision_start": 151652, "vision_end": 151653}
    keys = {name: name if name.endswith("_token") else f"{name}_token" for name in names}
    return {name: int(raw.get(f"{keys[name]}_id", default)) for name, default in names.items()}


class PatchModel(VideoModel):
    """A model whose tower reads patches of frames of any size; a subclass makes `vision`, a `GridVit` with `merge`."""

    vision: Any

    def encode(
        self,
        patches: Patches,
        needs: frozenset[str] = frozenset(),
        *,
        frame_mask: Bool[Array, "T"] | None = None,
        text: Float[Array, "L D"] | None = None,
        chunk: int | None = None,
    ) -> VideoTokens:
        """The tokens of a video and the evidence asked for; T counts grid frames, of two video frames each on Qwen-VL.

        `attention_last` is the attention received in the last block, per-frame softmax in float32, mean over heads and
        queries, then over the patches of a token (rows sum to 1 / merge^2; FlashVID, OTT-Vid, HoloV);
        `attention_mean_query` is that of the frame's mean query (rows sum to 1) and `frame_embedding` the mean token
        (FastVID). No reference exists for the rest, which follows what LLaVA's towers give: `keys` are the last block's
        before the rotary, mean over heads and the patches of a token (VisionZip); `attention_shallow` and
        `attention_deep` are SUMS over queries, means over heads and the patches of a token, of the blocks
        `vision.shallow_block` and `vision.deep_block` (AOT with pooling="none"). The DeepStack levels of Qwen3-VL are
        always attached, asked for or not: the language model cannot read the video without them.

        Args:
          patches: (P, V) the processor's patch vectors and their static grid (`video.preprocess.qwen_patches`).
          needs: names of evidence, static.
          frame_mask: (T,) bool, False on padding frames; by default all True.
          text: (L, D) embeddings of the question, for reducers that need "text".
          chunk: grid frames at once, static; by default as many as half a GiB of attention scores allows.

        Raises:
          JvidpruneError: evidence this model cannot give, or patches that do not fit the grid.
        """
        check_evidence(self.config.family, needs, self.provides, text)
        vision, grid = self.config.vision, patches.grid
        vision.check_grid(grid, patches.values.shape)
        frames, height, width = self.config.token_grid(grid)
        rows = patches.values.reshape(frames, grid[1] * grid[2], -1)
        arrays = map_chunks(lambda part: self._encode_chunk(part, grid, needs), rows, chunk or vision.chunk(grid))
        text = text if "text" in needs else None
        return video_tokens(arrays, (height, width), text=text, frame_mask=frame_mask)

    def _encode_chunk(self, patches: Array, grid: Grid, needs: frozenset[str]) -> dict[str, Array]:
        vision = self.config.vision
        blocks = evidence_blocks(vision) | {"attention_mean_query": vision.layers - 1}
        asked = needs & blocks.keys()
        found = self.vision(patches, grid, tuple(sorted({blocks[name] for name in asked})))
        features = self.vision.merge(found.hidden)
        out = {"features": features}
        if found.taps is not None:
            out["features_deepstack"] = jnp.moveaxis(self.vision.merge_taps(found.taps), 0, 2)
        for name in asked:
            block = found.evidence[blocks[name]]
            if name in ("attention_mean_query", "keys"):
                out[name] = block.mean_query if name == "attention_mean_query" else block.keys
                continue
            received = block.received.mean(axis=1)
            pooled = received.reshape(*features.shape[:2], -1).mean(axis=-1)
            out[name] = pooled if name == "attention_last" else pooled * received.shape[-1]
        if "frame_embedding" in needs:
            out["frame_embedding"] = features.mean(axis=1, dtype=jnp.float32)
        return out


class QwenVL(PatchModel):
    """Qwen2.5-VL (arXiv 2502.13923) or Qwen3-VL (arXiv 2511.21631), by config; every method is pure."""

    decoder: ClassVar[type[Decoder]] = Decoder

    def __init__(self, config: QwenVLConfig, *, dtype: Any, rngs: nnx.Rngs | None = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        self.vision = QwenVit(config.vision, dtype=dtype, rngs=rngs)
        self.lm = self.decoder(config.text, dtype=dtype, rngs=rngs)


def spread_levels(levels: Float[Array, "K S D"], rows: Int[Array, "B L"]) -> Float[Array, "S B L D"]:
    """What a prefill adds behind its first S layers: each visual slot's DeepStack levels, zeros on text.

    Args:
      levels: (K, S, D) levels of the visual tokens that are in the prompt.
      rows: (B, L) row of `levels` for each slot, negative on text and padding.
    """
    found = jnp.where(rows[..., None, None] >= 0, levels[jnp.maximum(rows, 0)], 0)
    return jnp.moveaxis(found, 2, 0)


RENAMES: tuple[tuple[str, str], ...] = (
    (r"^model\.visual\.", "visual."),
    (r"^(model\.)?language_model\.(model\.)?(?=(embed_tokens|layers|norm)\.)", "model."),
    (r"^(model\.)?(language_model\.)?lm_head\.", "lm_head."),
)
"""Published flat (`visual.`, `model.`), re-saved nested (`model.visual.`, `model.language_model.`) -> flat."""

_DROPPED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", r".*\.rotary_pos_emb\.inv_freq")


def name_table(config: QwenVLConfig, tower: tuple[Rule, ...]) -> NameTable:
    """The names of the tensors of one model; `tower` are the rules that differ between the families."""
    block, to, text = "visual.blocks.{L}", "vision.blocks", config.text
    return NameTable(
        RENAMES,
        _DROPPED,
        (
            Rule("visual.patch_embed.proj.weight", "vision.patch_embed.kernel", "conv"),
            *affine(f"{block}.attn.qkv", f"{to}.attn.qkv"),
            *affine(f"{block}.attn.proj", f"{to}.attn.o"),
            *norm(f"{block}.norm1", f"{to}.norm1", bias=not config.vision.rms),
            *norm(f"{block}.norm2", f"{to}.norm2", bias=not config.vision.rms),
            *tower,
            *decoder_rules(
                "model",
                "lm_head",
                qkv_bias=text.qkv_bias,
                qk_norm=text.qk_norm,
                tied=text.tied,
                experts=text.experts > 0,
            ),
        ),
    )
