"""A video LLM that reads reduced videos: load, encode, reduce, ask. Every step can be called by itself."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.errors import JvidpruneError
from jvidprune.inference import qwen
from jvidprune.inference.inner import prompt_inner
from jvidprune.inference.prompt import template
from jvidprune.inference.sequence import SlotMap, slot_map
from jvidprune.inference.stages import Stage, StageClock
from jvidprune.models.generate import check_sampling, decode, prefill
from jvidprune.models.load import LoadedModel, load_model
from jvidprune.models.tokenizer import Tokenizer, end_ids, load_tokenizer
from jvidprune.ops.newline import NewlineKind, NewlineRows, arrange
from jvidprune.reducers.base import inner_stages
from jvidprune.reducers.base import reduce as reduce_video
from jvidprune.reducers.presets import BACKBONES, from_text
from jvidprune.tokens import Reduced, Reducer, VideoTokens
from jvidprune.video.decode import Clip, read_frames
from jvidprune.video.preprocess import Patches, llava_pixels
from jvidprune.video.sampling import Rule

UNTRAINED_MARK = "untrained"
"""A file of this name in a checkpoint folder says that its weights are random."""


@dataclasses.dataclass(frozen=True)
class FamilySettings:
    """What a family needs around its model.

    Attributes:
      template: prompt template.
      newline: where newline embeddings go among the kept tokens.
      newline_rows: with a grid layout, rows that get one.
      frames: frames its published evaluations use.
      rule: frame sampling rule of `jvidprune.video.sampling`.
      pixels: (T, H, W, 3) uint8 frames and the model's config to what its tower reads.
      woven: the prompt carries three-axis positions, time stamps and vision markers (the Qwen-VL families).
    """

    template: str
    newline: NewlineKind
    newline_rows: NewlineRows
    frames: int
    rule: Rule
    pixels: Callable[[np.ndarray, Any], np.ndarray | Patches]
    woven: bool = False


def _squashed(frames: np.ndarray, config: Any) -> np.ndarray:
    return llava_pixels(frames, size=config.vision.image_size)


FAMILIES: dict[str, FamilySettings] = {
    "llava_onevision": FamilySettings("qwen_1_5", "one_token", "all", 32, "llava_video_force", _squashed),
    "llava_video": FamilySettings("qwen_1_5", "grid", "all", 64, "llava_video_force", _squashed),
    # These have no newline embeddings: nothing stands behind the video.
    "qwen2_5_vl": FamilySettings("qwen2_5_vl", "no_token", "all", 32, "qwen_utils", qwen.patches, woven=True),
    "qwen3_vl": FamilySettings("qwen3_vl", "no_token", "all", 32, "hf_qwen3", qwen.patches, woven=True),
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    Attributes:
      question, text: what was asked and answered.
      token_ids: generated ids, end of sequence excluded.
      reducer: method name.
      ratio: retention ratio asked for.
      kept, visual: tokens kept and tokens there were, newlines not counted.
      prompt: prompt length in tokens.
      stages: decode, encode, reduce, prefill, generate.
      untrained: the weights are random.
    """

    question: str
    text: str
    token_ids: tuple[int, ...]
    reducer: str
    ratio: float
    kept: int
    visual: int
    prompt: int
    stages: tuple[Stage, ...]
    untrained: bool

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = [dataclasses.asdict(stage) | {"per_second": stage.rate} for stage in self.stages]
        return dataclasses.asdict(self) | {"token_ids": list(self.token_ids), "stages": stages}


@dataclasses.dataclass(frozen=True)
class VideoLLM:
    """A loaded model with its tokenizer and the settings of its family."""

    loaded: LoadedModel
    tokenizer: Tokenizer
    settings: FamilySettings

    @classmethod
    def load(
        cls, source: str | Path, *, dtype: Any = jnp.float32, progress: Callable[[int, int, str], None] | None = None
    ) -> "VideoLLM":
        """Loads a checkpoint folder or hub id.

        Raises:
          JvidpruneError: not a checkpoint of a known family, or anything wrong with its files.
        """
        loaded = load_model(source, dtype=dtype, progress=progress)
        if loaded.family not in FAMILIES:
            raise JvidpruneError(f"{loaded.family} checkpoints load, but cannot be asked about videos yet.")
        return cls(loaded, load_tokenizer(loaded.folder), FAMILIES[loaded.family])

    @property
    def untrained(self) -> bool:
        """Whether the checkpoint says that its weights are random."""
        return (self.loaded.folder / UNTRAINED_MARK).exists()

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return end_ids(self.loaded.folder, self.tokenizer)

    def sample(
        self,
        path: str | Path,
        *,
        frames: int | None = None,
        fps: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Clip:
        """Decodes the frames this model looks at.

        Raises:
          JvidpruneError: a file that cannot be read, or a wish it cannot meet.
        """
        if fps is not None:
            return read_frames(path, fps=fps, progress=progress)
        count = self.settings.frames if frames is None else frames
        return read_frames(path, num_frames=count, rule=self.settings.rule, progress=progress)

    def encode(self, frames: np.ndarray, needs: frozenset[str] = frozenset()) -> VideoTokens:
        """(T, H, W, 3) uint8 frames to tokens with the evidence asked for.

        Raises:
          JvidpruneError: evidence this checkpoint cannot give.
        """
        pixels = self.settings.pixels(frames, self.loaded.config)
        if isinstance(pixels, Patches):
            steps, rows, columns = (int(side) for side in pixels.grid)
            return _encode_grid(self.loaded.model, jnp.asarray(pixels.values), (steps, rows, columns), needs)
        return _encode(self.loaded.model, jnp.asarray(pixels), needs)

    def reducer(self, text: str) -> Reducer:
        """A reducer with this family's published settings, from "name" or "name:key=value,...".

        Raises:
          JvidpruneError: unknown name or setting.
        """
        return from_text(text, self.loaded.family if self.loaded.family in BACKBONES else None)

    def visual_rows(self, reduced: Reduced, video: VideoTokens) -> np.ndarray:
        """(V,) rows of the reduced tokens in sequence order, -1 for newline embeddings; read back to the host."""
        frames = video.features.shape[0]
        layout = arrange(
            reduced.index,
            reduced.valid,
            kind=self.settings.newline,
            grid=video.grid,
            frames=frames,
            rows=self.settings.newline_rows,
        )
        valid = np.asarray(layout.valid)
        return np.where(np.asarray(layout.is_newline), -1, np.asarray(layout.source))[valid]

    def lay_out(
        self, reduced: Reduced, video: VideoTokens, question: str, reserve: int, clip: Clip | None = None
    ) -> tuple[SlotMap, np.ndarray]:
        """The slots of a prompt and its text ids in order; families that write time read it from `clip`."""
        if self.settings.woven:
            prompt = template(self.settings.template)
            return qwen.weave(self.tokenizer, self.loaded.config, prompt, video, reduced, question, clip, reserve)
        before, after = (self.tokenizer.encode(text) for text in template(self.settings.template).parts(question))
        rows = self.visual_rows(reduced, video)
        slots = slot_map(
            len(before), len(after), rows, max_positions=self.loaded.config.text.max_positions, reserve=reserve
        )
        return slots, np.asarray([*before, *after], np.int32)

    def ask(
        self,
        video: VideoTokens,
        question: str,
        *,
        reducer: Reducer,
        ratio: float,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        clock: StageClock | None = None,
        clip: Clip | None = None,
    ) -> Answer:
        """Answers one question about encoded tokens; call it again with the same `video` for another question.

        `clip` is what was encoded; the Qwen-VL families take the times of its frames into the prompt.

        Raises:
          JvidpruneError: an impossible ratio or budget, or a prompt longer than the model's positions.
        """
        clock = clock or StageClock()
        check_sampling(max_new_tokens, temperature, top_p)
        with clock("reduce") as stage:
            inner = inner_stages(reducer, ratio)
            blocks = any(stage.rule == "text_in_blocks" for stage in inner)
            reduced = jax.block_until_ready(reduce_video(reducer, video, ratio, diagnostics=blocks))
            stage.tokens = kept = int(reduced.count)
        with clock("prefill") as stage:
            slots, text = self.lay_out(reduced, video, question, max_new_tokens, clip)
            model = self.loaded.model
            embeds = _assemble(model, jnp.asarray(text), reduced.tokens, jnp.asarray(slots.source))
            size = len(slots.source)
            valid = slots.valid[None]
            stages = prompt_inner(
                inner,
                slots,
                len(text),
                newline=self.settings.newline,
                layers=self.loaded.config.text.layers,
                block=np.asarray(reduced.diagnostics["block"]) if "block" in reduced.diagnostics else None,
            )
            options: dict[str, Any] = {} if stages is None else {"inner": stages}
            if slots.next_position is not None:
                options["next_position"] = np.asarray([slots.next_position], np.int32)
            levels = qwen.kept_levels(video, reduced, slots, len(text))
            if levels is not None:
                options["added"] = levels
            capacity = size + max_new_tokens - 1
            logits, cache = prefill(model, embeds[None], slots.rotary, valid, capacity=capacity, **options)
            jax.block_until_ready(logits)
            stage.tokens = slots.length
        with clock("generate") as stage:
            ids, _ = decode(
                model,
                logits,
                cache,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                key=jax.random.key(seed),
                eos_ids=self.eos_ids,
            )
            ids = [int(i) for i in np.asarray(ids[0]) if i >= 0]
            stage.tokens = len(ids)
        answer = tuple(i for i in ids if i not in self.eos_ids)
        return Answer(
            question=question,
            text=self.tokenizer.decode(answer).strip(),
            token_ids=answer,
            reducer=getattr(getattr(reducer, "info", None), "title", type(reducer).__name__),
            ratio=float(ratio),
            kept=kept,
            visual=int(video.frame_mask.sum()) * video.features.shape[1],
            prompt=slots.length,
            stages=tuple(clock.stages),
            untrained=self.untrained,
        )


@functools.partial(jax.jit, static_argnames="needs")
def _encode(model: Any, pixels: jax.Array, needs: frozenset[str]) -> VideoTokens:
    return model.encode(pixels, needs)


@functools.partial(jax.jit, static_argnames=("grid", "needs"))
def _encode_grid(model: Any, patches: jax.Array, grid: tuple[int, int, int], needs: frozenset[str]) -> VideoTokens:
    return model.encode(patches, grid, needs)


@jax.jit
def _assemble(model: Any, text: jax.Array, tokens: jax.Array, source: jax.Array) -> jax.Array:
    words = model.embed_text(text)
    # A family without newline embeddings has a row that no slot points at.
    newline = getattr(model, "newline", None)
    table = [words, jnp.zeros_like(words[:1]) if newline is None else newline[None], tokens]
    return jnp.concatenate([part.astype(table[0].dtype) for part in table])[source]
