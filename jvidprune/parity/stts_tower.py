"""STTS's golden towers: a small Molmo2 tower with scorer, packing, attention-pooling connector and projector."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from jvidprune.models.siglip import Siglip, SiglipConfig
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.stts import BIAS, LOSS, SCORE, examples_of, gradients, layout_rows, with_prefix
from jvidprune.stts.config import STTSConfig
from jvidprune.stts.scorer import Scorer, scorer_from_tensors
from jvidprune.stts.select import Examples
from jvidprune.stts.siglip import SiglipTower
from jvidprune.stts.tower import Scored, run_tower
from jvidprune.stts.windows import Windows, raster_windows

HIDDEN, GRADIENT = 1e-4, 1e-3

_SCORER = "image_vit.transformer.temporal_token_scorer."
_BLOCK = {
    "attention.wq": "attn.q",
    "attention.wk": "attn.k",
    "attention.wv": "attn.v",
    "attention.wo": "attn.o",
    "attention_norm": "norm1",
    "ffn_norm": "norm2",
    "feed_forward.w1": "mlp.fc1",
    "feed_forward.w2": "mlp.fc2",
}
"""Released layer name -> ours."""

_PACKINGS: tuple[Any, ...] = ("masked", "flat", "rows")


def is_tower(golden: Golden) -> bool:
    """A run of a whole tower."""
    return golden.config.get("kind") == "tower" and golden.has("images", "token_pooling", "features_out")


def tower_of(golden: Golden) -> Siglip:
    """The tower of a file."""
    c, weights = golden.config, with_prefix(golden, "w/image_vit.")
    config = SiglipConfig(
        width=c["D"],
        mlp=c["mlp"],
        layers=c["layers"],
        heads=c["heads"],
        image_size=c["side"],
        patch_size=1,
        channels=golden["images"].shape[-1],
        activation=c["vit_activation"],
        eps=c["layer_norm_eps"],
    )
    tower = Siglip(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    tower.patch_embed.kernel = nnx.Param(jnp.asarray(weights["patch_embedding.weight"].T))
    tower.patch_embed.bias = nnx.Param(jnp.asarray(weights["patch_embedding.bias"]))
    tower.pos_embed = nnx.Param(jnp.asarray(weights["positional_embedding"]))
    for name, target in _BLOCK.items():
        layer: Any = tower.blocks
        for part in target.split("."):
            layer = getattr(layer, part)
        keys = [f"transformer.resblocks.{i}.{name}" for i in range(c["layers"])]
        weight = np.stack([weights[f"{key}.weight"].T for key in keys])
        setattr(layer, "scale" if "norm" in name else "kernel", nnx.Param(jnp.asarray(weight)))
        layer.bias = nnx.Param(jnp.asarray(np.stack([weights[f"{key}.bias"] for key in keys])))
    return tower


def connect(x: Array, weights: Mapping[str, np.ndarray], windows: Windows, heads: int) -> Array:
    """(F, P, d) of every window: attention of the mean patch over the patches, then the gated projector."""

    def affine(x: Array, name: str) -> Array:
        out = x @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    parts = windows.gather(x)
    q = affine(parts.mean(axis=2), "image_pooling_2d.wq")
    k, v = (affine(parts, f"image_pooling_2d.{name}") for name in ("wk", "wv"))
    q, k, v = (t.reshape(*t.shape[:-1], heads, -1) for t in (q, k, v))
    logits = jnp.einsum("fphd,fpghd->fphg", q, k) * q.shape[-1] ** -0.5
    pooled = jnp.einsum("fphg,fpghd->fphd", jax.nn.softmax(logits, axis=-1), v)
    pooled = affine(pooled.reshape(*pooled.shape[:2], -1), "image_pooling_2d.wo")
    gate = jax.nn.silu(affine(pooled, "image_projector.w1")) * affine(pooled, "image_projector.w3")
    return affine(gate, "image_projector.w2")


def compare(golden: Golden) -> Iterator[Row]:
    """Scores to output tokens, in each of the three executions, and all gradients."""
    c = golden.config
    windows = raster_windows(c["side"])
    vision, weights = tower_of(golden), with_prefix(golden, "w/")
    scorer = scorer_from_tensors(weights, c["heads"], prefix=_SCORER)
    images = golden["images"]
    flat = jnp.asarray(images.reshape(-1, *images.shape[2:]))
    examples = examples_of(golden, windows, c["prune"], images.shape[1])
    yield from _table_rows(golden, windows)
    keep = golden["keep_window"]
    layers = [layer % c["layers"] for layer in c["vit_layers"]]
    record = tuple(sorted({*layers, *(int(key[7:]) for key in golden.arrays if key.startswith("hidden_"))}))
    kept = windows.count * int(examples.there.sum()) - int(np.asarray(examples.remove).sum())

    def run(vision: Siglip, scorer: Scorer, examples: Examples, packing: Any) -> tuple[Array, Scored]:
        x = vision.patch_embed(flat) + vision.pos_embed[...]
        config = STTSConfig(
            prune_at=c["prune_at"],
            removed=c["prune"],
            min_bias_scale=c["rescale_bias_min"],
            coefficient=c["coefficient"],
            refill="official",
            packing=packing,
            attention="plain",
        )
        out = run_tower(SiglipTower(vision), x, windows, examples, config, kept=kept, scorer=scorer, record=record)
        joined = jnp.concatenate([out.recorded[layer] for layer in layers], axis=-1)
        return connect(joined, weights, windows, c["heads"]), out

    for packing in _PACKINGS:
        tokens, out = jax.jit(run, static_argnames="packing")(vision, scorer, examples, packing=packing)
        yield from _forward_rows(golden, packing, tokens, out, keep)
    yield from layout_rows(golden, "", np.asarray(golden["keep_token"]))

    def downstream(scorer: Scorer) -> Array:
        rows = run(vision, scorer, examples, "flat")[0][keep]
        return (rows.reshape(-1) * jnp.cos(0.37 * jnp.arange(rows.size))).sum()

    value, gradient = jax.jit(jax.value_and_grad(downstream))(scorer)
    yield close("downstream_loss", value, golden["downstream_loss"], HIDDEN, 1e-6)
    yield from gradients(gradient, golden, "grad_downstream/", _SCORER)
    if golden.has("aux_loss"):

        def auxiliary(vision: Siglip, scorer: Scorer) -> Array:
            return run(vision, scorer, examples, "flat")[1].loss

        value, (to_vision, to_scorer) = jax.jit(jax.value_and_grad(auxiliary, argnums=(0, 1)))(vision, scorer)
        yield close("aux_loss", value, golden["aux_loss"], LOSS)
        key = "grad_aux_patch_embedding"
        yield close(key, to_vision.patch_embed.kernel[...].T, golden[key], 1e-9, GRADIENT)
        yield from gradients(to_scorer, golden, "grad_aux/", _SCORER)


def _table_rows(golden: Golden, windows: Windows) -> Iterator[Row]:
    batch, frames = golden["images"].shape[:2]
    table = np.stack([windows.patches + frame * windows.patch_count for frame in range(frames)])
    there = np.arange(frames) < np.maximum(golden["num_images"], 0).sum(axis=1)[:, None]
    table = np.where(there[:, :, None, None], table, -1).reshape(batch, -1, table.shape[-1])
    yield exact("token_pooling", table, golden["token_pooling"])


def _forward_rows(golden: Golden, packing: str, tokens: Array, out: Scored, keep: np.ndarray) -> Iterator[Row]:
    note = f"packing {packing}"
    yield close("scores", out.scores, golden["scores"], SCORE, note=note)
    yield close("bias", out.bias, golden["bias"], BIAS, note=note)
    yield exact("keep_window", out.keep, keep, note=note)
    yield exact("keep_token", out.active, golden["keep_token"], note=note)
    yield exact("refill_token", out.refilled, golden["refill_token"], note=note)
    prunable = golden["prunable_frame"]
    yield exact("window_keep_prunable", out.keep[prunable].reshape(-1), golden["window_keep_prunable"], note=note)
    for block, state in out.recorded.items():
        if golden.has(f"hidden_{block}"):
            yield close(f"hidden_{block}", state, golden[f"hidden_{block}"], HIDDEN, note=note)
    yield close("features_out", tokens[keep], golden["features_out"], HIDDEN, note=note)


COMPARERS = [Comparer("stts", is_tower, compare)]
