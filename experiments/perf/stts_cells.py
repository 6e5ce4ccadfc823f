"""STTS: tower and training step with half of the windows removed, against the same without STTS."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jvidprune.costs import flops_model
from jvidprune.models.checkpoint.load import load_model
from jvidprune.models.embedded import EMBEDDED
from jvidprune.stts import (
    Scorer,
    SiglipTower,
    STTSConfig,
    encode,
    encoder_of,
    one_video,
    pooling_windows,
    windows_to_remove,
)
from jvidprune.tokens import Layout

from .measure import Rates, measure
from .model_cells import TEXT, random_model


@dataclasses.dataclass(frozen=True)
class STTSCell:
    """One entry of the table.

    Attributes:
      model: a published LLaVA, or "embedded" for the model in the package.
      frames: of the video.
      removed: share of the windows; 0 is the model without STTS.
      work: "tower" (pixels to the tokens of the language model) or "step" (loss and gradients of everything).
    """

    model: str
    frames: int
    removed: float
    work: str

    @property
    def key(self) -> str:
        """Name of the row."""
        return f"{self.model} frames={self.frames} removed={self.removed:g} {self.work}"


def cells(which: str) -> list[STTSCell]:
    """8, 32 and 128 frames (8 for "quick"), with nothing and with half of the windows removed."""
    model = "embedded" if jax.default_backend() == "cpu" else "llava-onevision-0.5b"
    frames = (8,) if which == "quick" else (8, 32, 128)
    return [STTSCell(model, t, r, work) for work in ("tower", "step") for t in frames for r in (0.0, 0.5)]


def _model(name: str, dtype: Any) -> tuple[Any, Any]:
    if name != "embedded":
        return random_model(name, dtype)
    loaded = load_model(EMBEDDED, dtype=dtype)
    return loaded.model, loaded.config


def run_cell(cell: STTSCell, rates: Rates, repeats: int, seconds: float) -> dict[str, Any]:
    """One row; the floor counts dense blocks, as the FLOPs of packed ones depend on the videos' straddling frames."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    model, config = _model(cell.model, dtype)
    settings = STTSConfig(prune_at=min(3, config.vision.layers - 4), removed=cell.removed)
    windows = pooling_windows(config, settings.window)
    remove = windows_to_remove(cell.frames, windows.count, cell.removed)
    kept = cell.frames * windows.count - remove
    scorer = Scorer(SiglipTower(model.vision).sizes, rngs=nnx.Rngs(0))
    video = one_video(cell.frames, remove)

    def tokens(model: Any, scorer: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        if cell.removed == 0:
            features = model.encode(pixels).features
            return features.reshape(-1, features.shape[-1]), jnp.float32(0)
        encoder = encoder_of(model, settings.window)
        pruned = encode(encoder, pixels, video, settings, kept=kept, scorer=scorer)
        return pruned.tokens, pruned.loss

    graph, state = nnx.split((model, scorer))

    @partial(jax.jit, static_argnames="step")
    def run(state: Any, pixels: jax.Array, *, step: bool) -> Any:
        def loss(state: Any) -> jax.Array:
            model, scorer = nnx.merge(graph, state)
            visual, auxiliary = tokens(model, scorer, pixels)
            words = model.embed_text(jnp.arange(TEXT))
            embeds = jnp.concatenate([visual.astype(words.dtype), words])[None]
            places = jnp.arange(embeds.shape[1])[None]
            logits = model.lm.forward(embeds, places, jnp.ones(places.shape, bool)).logits[0, -TEXT:]
            return auxiliary - jnp.mean(jax.nn.log_softmax(logits)[:, 0])

        return jax.value_and_grad(loss)(state) if step else tokens(*nnx.merge(graph, state), pixels)

    side = config.vision.image_size
    pixels = jax.random.normal(jax.random.key(0), (cell.frames, 3, side, side), dtype)
    timing = measure(run, [(state, pixels)], {"step": cell.work == "step"}, repeats=repeats, seconds=seconds)
    tower, projector = flops_model.vision_terms(config, Layout(cell.frames, config.grid, config.unpooled_grid))
    dense = (settings.first_packed / config.vision.layers) if cell.removed else 1.0
    share = kept / (cell.frames * windows.count)
    flops = sum(tower.values()) * (dense + (1 - dense) * share) + sum(projector.values()) * share
    visual = kept * windows.tokens_each
    if cell.work == "step":
        parts = flops_model.segments((), config.text.layers, tokens=visual + TEXT, visual=visual)
        flops = 3 * (flops + sum(sum(terms.values()) for terms in flops_model.prefill(config.text, parts)))
    moved = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + pixels.nbytes
    return dataclasses.asdict(timing) | {
        "flops": flops,
        "moved": moved,
        "floor_ms": rates.floor(flops, moved),
        "visual": visual,
    }
