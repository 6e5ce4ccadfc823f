"""STTS's golden files: scorer, selection, bias, auxiliary loss, packing, budgets and baselines."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jvidprune.errors import JvidpruneError
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.stts.baselines import keep_unlike, reference_scores
from jvidprune.stts.bias import key_bias
from jvidprune.stts.budget import budgets, windows_to_remove
from jvidprune.stts.loss import auxiliary_loss, neighbour_cosine
from jvidprune.stts.packing import refill_alone, row_columns, row_slots
from jvidprune.stts.scorer import scorer_from_tensors, scorer_tensors
from jvidprune.stts.select import Examples, keep_windows, one_video, packed_examples
from jvidprune.stts.windows import Windows, raster_windows

SCORE, BIAS, LOSS = 1e-6, 1e-4, 1e-6
"""Absolute tolerances in float32; a row of nearly equal scores makes its bias ill-conditioned."""

GRADIENT = 1e-3
"""Tolerance of gradients as a share of the largest entry."""

POOLED = 1e-5

NO_GRADIENT = "patch_token_pooler.wk.bias"
"""Zero in exact arithmetic: files hold its rounding noise."""

VIDEO = 2
"""Number of a video among the kinds of examples."""


def with_prefix(golden: Golden, prefix: str) -> dict[str, np.ndarray]:
    """Arrays whose keys begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in golden.arrays.items() if key.startswith(prefix)}


def examples_of(golden: Golden, windows: Windows, removed: float, slots: int) -> Examples:
    """The examples of a file, with the budgets that this port makes."""
    frames, kinds = np.atleast_2d(golden["num_images"]), np.atleast_2d(golden["multimodal_type"])
    start = golden.config["prune_from_frame"]
    counts = np.maximum(frames, 0)
    remove = [
        budgets(row, windows.count, removed, video=kind == VIDEO, prune_from_frame=start)
        for row, kind in zip(counts, kinds, strict=True)
    ]
    return packed_examples(frames, np.stack(remove), slots)


def gradients(found: Any, golden: Golden, prefix: str, scale: str) -> Iterator[Row]:
    """Rows for the gradients of a scorer's tensors."""
    ours = scorer_tensors(found, "")
    for key, value in with_prefix(golden, prefix).items():
        name = key.removeprefix(scale)
        if name in ours and name != NO_GRADIENT:
            yield close(prefix + key, ours[name], value, 1e-9, GRADIENT)


@jax.jit
def _layout(keep_token: Array) -> tuple[Array, ...]:
    packed, back = refill_alone(keep_token)
    active = keep_token | back
    row, column = row_columns(active, packed)
    return row, column, row_slots(active, packed, len(keep_token)).segment, back, packed.used


def layout_rows(golden: Golden, prefix: str, keep_token: np.ndarray) -> Iterator[Row]:
    """Rows of the released packing: where patches go, and which come back (as a share of what prunable frames keep)."""
    row, column, segment, back, used = _layout(keep_token)
    segment = np.asarray(segment)[: int(used)]
    yield exact(f"{prefix}row", row, golden[f"{prefix}row"])
    yield exact(f"{prefix}col", column, golden[f"{prefix}col"])
    yield exact(
        f"{prefix}row_segment", np.where(segment < len(keep_token), segment, -1), golden[f"{prefix}row_segment"]
    )
    back_key = f"{prefix}refill_token" if golden.has(f"{prefix}refill_token") else f"{prefix}refill"
    yield exact(back_key, back, golden[back_key])
    if golden.has(f"{prefix}rows_used"):
        yield exact(f"{prefix}rows_used", used, golden[f"{prefix}rows_used"])
        share = int(back.sum()) / int(keep_token[golden["prunable_frame"]].sum())
        yield close(f"{prefix}refill_over_kept", share, golden[f"{prefix}refill_over_kept"], 1e-6)


def selection_rows(
    golden: Golden, prefix: str, scores: jax.Array, windows: Windows, examples: Examples
) -> Iterator[Row]:
    """Rows of budget, selection and packing at one share removed."""
    remove = np.asarray(examples.remove)
    video = np.atleast_2d(golden["multimodal_type"]).ravel() == VIDEO
    yield exact(f"{prefix}num_pruned", remove[video], golden[f"{prefix}num_pruned"])
    if not golden.has(f"{prefix}keep_window"):
        return
    keep = jax.jit(keep_windows)(golden["scores"], examples)
    yield exact(f"{prefix}keep_window", keep, golden[f"{prefix}keep_window"])
    margin = golden[f"{prefix}margin"]
    if (margin[margin > 0] > 1e-5).all() and golden.config.get("objects", 1):
        ours = jax.jit(keep_windows)(scores, examples)
        yield exact(f"{prefix}keep_window of own scores", ours, golden[f"{prefix}keep_window"])
    tokens = windows.spread_mask(keep)
    yield exact(f"{prefix}keep_token", tokens, golden[f"{prefix}keep_token"])
    yield from layout_rows(golden, prefix, np.asarray(tokens))


def is_scorer(golden: Golden) -> bool:
    """A run of the scorer without a tower around it."""
    return golden.config.get("kind") == "scorer" and golden.has("features", "scores", "window_index")


def compare_scorer(golden: Golden) -> Iterator[Row]:
    """Pooled windows, scores, bias, auxiliary loss with its gradients, and every share removed."""
    c = golden.config
    windows = raster_windows(c["side"])
    scorer = scorer_from_tensors(with_prefix(golden, "w/"), c["heads"], prefix="")
    features = golden["features"]
    x = jnp.asarray(features.reshape(-1, *features.shape[2:]))
    yield exact("window_index", windows.patches, golden["window_index"])
    yield close("pooled", jax.jit(lambda s, x: s.pooler(x, windows))(scorer, x), golden["pooled"], POOLED)
    logits = jax.jit(lambda s, x: s.logits(x, windows))(scorer, x)
    yield close("logits", logits, golden["logits"], POOLED)
    scores = jax.nn.sigmoid(logits)
    yield close("scores", scores, golden["scores"], SCORE)
    slots = features.shape[1]
    first = examples_of(golden, windows, c["prune"][0], slots)
    yield exact("prunable_frame", first.prunable, golden["prunable_frame"])
    bias = key_bias(jnp.asarray(golden["scores"]), windows, first, floor=c["rescale_bias_min"])
    yield close("bias", bias, golden["bias"], BIAS)
    if golden.has("aux_loss"):
        yield close("neighbour_cosine", neighbour_cosine(x, windows), golden["neighbour_cosine"], SCORE)

        def loss(scorer: Any, x: jax.Array) -> jax.Array:
            return auxiliary_loss(scorer(x, windows), x, windows, first, coefficient=c["coefficient"])

        value, (to_scorer, to_x) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(scorer, x)
        yield close("aux_loss", value, golden["aux_loss"], LOSS)
        yield close("grad_aux/x", to_x.reshape(features.shape), golden["grad_aux/x"], 1e-9, GRADIENT)
        yield from gradients(to_scorer, golden, "grad_aux/", "")
    for number, removed in enumerate(c["prune"]):
        prefix = f"p{round(100 * removed):02d}_"
        examples = examples_of(golden, windows, removed, slots)
        yield from selection_rows(golden, prefix, scores, windows, examples)
        if golden.has(f"{prefix}bias"):
            none = key_bias(scores, windows, examples, floor=c["rescale_bias_min"])
            yield close(f"{prefix}bias", none, golden[f"{prefix}bias"], BIAS)
        if number == 0:
            kept = golden[f"{prefix}keep_window"]
            means = windows.gather(x).mean(axis=2)[kept]
            yield close(f"{prefix}features_out", means, golden[f"{prefix}features_out"], POOLED)


def is_packing(golden: Golden) -> bool:
    """Patterns of kept windows with the released packing."""
    return golden.config.get("kind") == "packing" and golden.has("0_keep_window", "0_row_segment")


def compare_packing(golden: Golden) -> Iterator[Row]:
    """Rows, columns, segments and refill of every pattern."""
    for number in range(len(golden.config["patterns"])):
        keep = golden[f"{number}_keep_window"]
        windows = raster_windows(3 * round(keep.shape[1] ** 0.5))
        yield from layout_rows(golden, f"{number}_", np.asarray(windows.spread_mask(jnp.asarray(keep))))


def is_budget(golden: Golden) -> bool:
    """The table of budgets."""
    return golden.config.get("kind") == "budget" and golden.has("frames", "num_pruned")


def compare_budget(golden: Golden) -> Iterator[Row]:
    """Budgets of 81 windows a frame."""
    table = [[windows_to_remove(int(t), 81, k) for t in golden["frames"]] for k in golden.config["topk"]]
    yield exact("num_pruned", table, golden["num_pruned"])


def is_baselines(golden: Golden) -> bool:
    """Single calls of the heuristics' selection."""
    return golden.config.get("kind") == "heuristic" and golden.has("features", "cosine")


def real_frames(golden: Golden, frames: int) -> int:
    """Frames in front of `first_padding`, a number in the config or among the arrays; all without it or where it is
    negative."""
    if golden.has("first_padding"):
        value: Any = np.asarray(golden["first_padding"])
        if value.size != 1:
            raise JvidpruneError(f"first_padding must be one frame number, got an array of shape {value.shape}.")
        value = value.item()
    else:
        value = golden.config.get("first_padding")
    if value is None:
        return frames
    if not isinstance(value, int) or isinstance(value, bool) or value > frames:
        raise JvidpruneError(f"first_padding must be a frame number of at most {frames}, got {value!r}.")
    return frames if value < 0 else value


def compare_baselines(golden: Golden) -> Iterator[Row]:
    """Kept windows and flags of both heuristics, and the similarities they read.

    Frames from `first_padding` on are padding: they take no part in the choice, and whether a file marks their windows
    as kept is not compared.
    """
    c = golden.config
    windows = raster_windows(c["side"])
    features = jnp.asarray(golden["features"])
    parts = windows.gather(features).reshape(len(features) * windows.count, -1)
    unit = parts / jnp.linalg.norm(parts, axis=-1, keepdims=True)
    yield close("cosine", unit @ unit.T, golden["cosine"], SCORE)
    methods: Mapping[str, Any] = {"reference": "heuristic", "easy": "easy"}
    real = real_frames(golden, len(features))

    @jax.jit
    def run(remove: Any, threshold: Any) -> dict[str, Any]:
        examples = one_video(len(features), remove, jnp.arange(len(features)) < real)
        return {
            name: keep_unlike(
                reference_scores(features, windows, examples, threshold, method=method),
                examples,
            )
            for name, method in methods.items()
        }

    for threshold in c["thresholds"]:
        for remove in c["num_pruned"]:
            found = run(remove, threshold)
            for name in methods:
                key = f"{name}_n{remove}_t{round(100 * threshold)}_"
                keep, flag = found[name]
                theirs = golden[f"{key}keep_window"]
                yield exact(f"{key}keep_window", np.asarray(keep)[:real], theirs[:real])
                yield exact(f"{key}flag", flag[0], golden[f"{key}flag"])


COMPARERS = [
    Comparer("stts", is_scorer, compare_scorer),
    Comparer("stts", is_packing, compare_packing),
    Comparer("stts", is_budget, compare_budget),
    Comparer("stts", is_baselines, compare_baselines),
]
