"""Golden files of FlashVID inside its backbones: what surrounds the compression, and the places kept at the cut."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jvidprune.llm.prompts.slots import Interleaved, block_runs, interleave
from jvidprune.models.attention import attend_all
from jvidprune.models.positions import PromptPositions, VideoBlock, frame_blocks, prompt_pieces, prompt_positions
from jvidprune.ops import newline
from jvidprune.ops.pool import pool_tokens
from jvidprune.parity.core import Comparer, Golden, Row, close, exact, prefixed
from jvidprune.parity.flashvid import VALUE_RTOL, run_config, shown_of
from jvidprune.parity.flashvid_cut import kept_of
from jvidprune.tokens import Reduced

_VIDEO_ID = -200


def _trusted_frames(reduced: Reduced) -> np.ndarray:
    """(T,) frames whose clusters do not hang on noise by construction: not one or two clusters of more tokens."""
    shown = shown_of(reduced)
    clusters, candidates = shown["clusters"], shown["candidate"].sum(1)
    return (clusters > 2) | (clusters == candidates)


def _rows(reduced: Reduced, ids: np.ndarray, tokens: np.ndarray, certain: np.ndarray | None) -> Iterator[Row]:
    """Compressed tokens against ours; both are ordered by id, repeats by their values.

    Args:
      reduced: our side.
      ids, tokens: the stored side.
      certain: (M,) stored rows that do not hang on noise, or None where the file does not say.
    """
    count, n = int(reduced.count), reduced.diagnostics["selected"].shape[1]
    ours, mine = np.asarray(reduced.index)[:count], np.asarray(reduced.tokens)[:count]
    frames = len(reduced.diagnostics["clusters"])
    yield exact("number of outputs", count, len(ids))
    per_frame, stored = (np.bincount(side // n, minlength=frames) for side in (ours, ids))
    yield exact("outputs per frame", per_frame, stored)
    trusted = _trusted_frames(reduced) if certain is None else np.ones(frames, bool)
    if certain is not None:
        trusted[ids[~certain.astype(bool)] // n] = False
    selected = np.asarray(reduced.diagnostics["selected"]).reshape(-1) > 0
    sides = []
    for places, values in ((ours, mine), (ids, tokens)):
        keep = trusted[places // n] | selected[places]
        places, values = places[keep], values[keep]
        order = np.lexsort((values[:, 0], places))
        sides.append((places[order], values[order]))
    # A place that was selected and is also a doubtful centre of a one-frame segment appears twice on one side only.
    note = "" if trusted.all() else f"without the clusters of {int((~trusted).sum())} frames"
    yield exact("out_indices", sides[0][0], sides[1][0], note)
    yield close("out_tokens", sides[0][1], sides[1][1], 0.0, VALUE_RTOL, note)


def _compare_llava(golden: Golden) -> Iterator[Row]:
    side = round(golden["raw_features"].shape[1] ** 0.5)
    for mode, settings in golden.config["modes"].items():
        if not golden.has(f"{mode}/out_tokens"):
            continue
        kind, layout = settings["mm_spatial_pool_mode"], settings["mm_newline_position"]
        features = np.asarray(pool_tokens(jnp.asarray(golden["raw_features"]), (side, side), kind))
        attention = np.asarray(pool_tokens(jnp.asarray(golden["raw_attention"]), (side, side), kind))
        yield close(f"{mode}: pooled_features", features, golden[f"{mode}/pooled_features"], 0.0, VALUE_RTOL)
        yield close(f"{mode}: pooled_attention", attention, golden[f"{mode}/pooled_attention"], 0.0, VALUE_RTOL)
        reduced = run_config({**golden.config, **settings}, features, attention)
        rows = _rows(reduced, golden[f"{mode}/out_indices"], golden[f"{mode}/out_tokens"], None)
        yield from prefixed(f"{mode}: ", rows)
        yield from _prompt_rows(golden, mode, layout, features.shape)
    if golden.has("siglip/hidden", "siglip/attention_received"):
        yield _siglip_row(golden)


def _prompt_rows(golden: Golden, mode: str, layout: newline.NewlineKind, shape: tuple[int, ...]) -> Iterator[Row]:
    """Newlines and text around the stored tokens: the layout alone, whatever the compression gave."""
    tokens, ids = golden[f"{mode}/out_tokens"], golden[f"{mode}/out_indices"]
    side = round(shape[1] ** 0.5)
    laid = newline.arrange(jnp.asarray(ids), jnp.ones(len(ids), bool), kind=layout, grid=(side, side), frames=shape[0])
    visual = np.asarray(newline.sequence(laid, jnp.asarray(tokens), jnp.asarray(golden["image_newline"])))
    visual = visual[: int(laid.count)]
    prompt = golden["input_ids"][0]
    start = int(np.flatnonzero(prompt == _VIDEO_ID)[0])
    before, after = golden["embed_table"][prompt[:start]], golden["embed_table"][prompt[start + 1 :]]
    embeddings = np.concatenate([before, visual, after])
    # The one trailing newline of the whole video lies outside the range that is cut inside the model.
    ranged = len(visual) - (layout == "one_token")
    yield close(f"{mode}: inputs_embeds", embeddings, golden[f"{mode}/inputs_embeds"][0], 0.0, VALUE_RTOL)
    yield exact(f"{mode}: attention_mask", np.ones((1, len(embeddings))), golden[f"{mode}/attention_mask"])
    yield exact(f"{mode}: visual_start", start, golden[f"{mode}/visual_start"])
    yield exact(f"{mode}: visual_length", ranged, golden[f"{mode}/visual_length"])


def _received(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(T, M) attention received, mean over heads and queries."""
    _, received = attend_all(jnp.asarray(q), jnp.asarray(k), jnp.asarray(k), received=True)
    assert received is not None
    return np.asarray(received.mean(axis=1))


def _siglip_row(golden: Golden) -> Row:
    hidden, heads = golden["siglip/hidden"], golden.config["siglip"]["heads"]

    def project(name: str) -> np.ndarray:
        out = hidden @ golden[f"siglip/w/{name}.weight"].T + golden[f"siglip/w/{name}.bias"]
        return out.reshape(*hidden.shape[:2], heads, -1)

    ours = _received(project("q_proj"), project("k_proj"))
    return close("siglip: attention_received", ours, golden["siglip/attention_received"], 1e-6)


def _compare_qwen(golden: Golden) -> Iterator[Row]:
    frames, n, _ = golden["video_features"].shape
    q, k = (golden[key].reshape(frames, -1, *golden[key].shape[1:]) for key in ("last_block_q", "last_block_k"))
    unit = q.shape[1] // n
    attention = _received(q, k).reshape(frames * n, unit).mean(axis=1)
    if golden.has("window_index"):
        attention = attention[np.argsort(golden["window_index"])]
    yield close("cls_attention", attention.reshape(frames, n), golden["cls_attention"], 1e-6)
    reduced = run_config(golden.config, golden["video_features"], golden["cls_attention"])
    certain = golden["out_exact"] if golden.has("out_exact") else None
    yield from _rows(reduced, golden["compressed_indices"], golden["compressed_tokens"], certain)
    prompt, whole = _prompt(golden)
    yield from _position_rows(golden, prompt, whole)
    yield from _embedding_rows(golden, prompt)
    yield from _cut_rows(golden, prompt.source >= prompt.text)


def _prompt(golden: Golden) -> tuple[Interleaved, PromptPositions]:
    """The prompt of the stored kept ids, by the code that answers questions, and its positions without reduction."""
    ids, config = golden["input_ids"][0], golden.config
    frames, height, width = (int(side) for side in golden["grid_thw"][0])
    height, width = height // config["spatial_merge_size"], width // config["spatial_merge_size"]
    # Qwen3-VL tells time by text; the other model had 2 time ids a second and a second between grid frames.
    by_text = golden.has("visual_pos_mask")
    blocks = frame_blocks(frames, height, width) if by_text else [VideoBlock(frames, height, width, 1.0)]
    pieces = prompt_pieces(ids, config["video_token"], blocks)
    whole = prompt_positions(pieces, tokens_per_second=0.0 if by_text else 2.0)
    texts, text, at = [], ids[:0], 0
    for piece in pieces:
        if isinstance(piece, VideoBlock):
            texts, text, at = [*texts, text], ids[:0], at + piece.tokens
        else:
            text, at = ids[at : at + piece], at + piece
    dropped = (config["vision_start"], config["vision_end"]) if by_text else ()
    return interleave([*texts, text], block_runs(golden["compressed_indices"], blocks), dropped=dropped), whole


def _position_rows(golden: Golden, prompt: Interleaved, whole: PromptPositions) -> Iterator[Row]:
    """Positions of the whole prompt, of what is kept of it, and of the first generated token.

    Where a file holds four rows, the first is the place in the unreduced prompt.
    """
    yield exact("rope_full", whole.ids[:, None], golden["rope_full"])
    yield exact("rope_delta", [whole.rope_delta], golden["rope_delta"])
    yield exact("kept_cache_position", prompt.full, golden["kept_cache_position"])
    kept, following = golden["kept_position_ids"], golden["next_position_ids"]
    places = [prompt.full] if len(kept) == 4 else []
    yield exact("kept_position_ids", np.stack([*places, *whole.keep(prompt.full).ids])[:, None], kept)
    ahead = [prompt.whole] * len(places) + [whole.next] * 3
    yield exact("next_position_ids", np.reshape(ahead, following.shape), following)
    yield exact("next_cache_position", [prompt.whole], golden["next_cache_position"])


def _embedding_rows(golden: Golden, prompt: Interleaved) -> Iterator[Row]:
    """The reduced prompt's embeddings, and the DeepStack levels of its visual tokens.

    The file has no embedding table: a text token must stand where another of the same id stands in the stored prompt.
    """
    visual, stored, ids = prompt.source >= prompt.text, golden["inputs_embeds"][0], golden["input_ids"][0]
    words = np.where(visual, -1, ids[prompt.full])
    first = np.array([int(np.argmax(words == word)) for word in words])
    rows = np.where(visual, prompt.source - prompt.text - 1, 0)
    ours = np.where(visual[:, None], golden["compressed_tokens"][rows], stored[first])
    yield close("inputs_embeds", ours[None], golden["inputs_embeds"], 0.0, VALUE_RTOL, "text by its first occurrence")
    if golden.has("visual_pos_mask"):
        yield exact("visual_pos_mask", visual[None], golden["visual_pos_mask"])
        index = golden["compressed_indices"]
        yield close("deepstack_kept", golden["deepstack_full"][:, index], golden["deepstack_kept"], 0.0)


def _cut_rows(golden: Golden, visual: np.ndarray) -> Iterator[Row]:
    """The cut inside the model: places in the reduced prompt, and the caches on its two sides."""
    state = kept_of(golden["llm_last_query_attention"], visual, golden.config["llm_retention_ratio"])
    keep = np.asarray(state.source)[0]
    yield exact("llm_keep", keep, golden["llm_keep"])
    stored, layer = golden["cache_lengths"], golden.config["pruning_layer"]
    steps = stored[0] - len(visual)
    ours = np.where(np.arange(len(stored)) < layer, len(visual), len(keep)) + steps
    yield exact("cache_lengths", ours, stored, f"{steps} generated tokens included")


COMPARERS = [
    Comparer("flashvid", lambda golden: golden.has("raw_features", "raw_attention", "image_newline"), _compare_llava),
    Comparer(
        "flashvid",
        lambda golden: golden.has("last_block_q", "last_block_k", "cls_attention", "compressed_indices"),
        _compare_qwen,
    ),
]
