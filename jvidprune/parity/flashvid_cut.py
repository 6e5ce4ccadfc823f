"""FlashVID's cut inside the language model: the rule alone, and a whole tiny decoder with its caches and answer."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvidprune.cuts.inner import Inner
from jvidprune.cuts.rules import LastQueryTopK
from jvidprune.models.decoder import Decoder
from jvidprune.models.prefill import Read, read_prompt
from jvidprune.parity.core import Comparer, Golden, Row, close, exact
from jvidprune.parity.decoders import decoder_of
from jvidprune.tokens import InnerStage, Kept

ATTENTION, LOGITS = 1e-6, 1e-4

_FAR = 10**6
"""More layers than any cut asks for."""


def is_cut(golden: Golden) -> bool:
    """The rule alone, several cases a file."""
    return golden.has("case0/in/visual_mask", "case0/out/keep")


def is_decoder(golden: Golden) -> bool:
    """A tiny decoder with a cut."""
    return golden.has("last_query_attention", "key_cache_before", "key_cache_after", "keep", "inputs_embeds")


def kept_of(weights: np.ndarray, visual: np.ndarray, keep: float, positions: np.ndarray | None = None) -> Any:
    """State after one cut of one prompt, hidden states being the slots themselves.

    Args:
      weights: (H, S) attention of the last query.
      visual: (S,) bool.
      keep: share of the visual positions.
      positions: (1, S) or (3, 1, S), by default the slots.
    """
    slots = np.arange(len(visual))
    ones = np.ones((1, len(slots)), bool)
    inner = Inner.create((InnerStage(1, LastQueryTopK(), Kept(keep)),), visual[None], ones, layers=_FAR)
    where = slots[None] if positions is None else positions
    state = inner.start(jnp.asarray(slots, jnp.float32)[None, :, None], jnp.asarray(where), jnp.asarray(ones))
    return jax.jit(inner.cuts[0].apply)(state, jnp.asarray(weights)[None, :, None])[0]


def compare_cut(golden: Golden) -> Iterator[Row]:
    """Kept positions and what travels with them."""
    for number, case in enumerate(golden.config["cases"]):
        name = f"case{number}"
        into = {key.split("/")[-1]: golden[key] for key in golden.arrays if key.startswith(f"{name}/in/")}
        out = {key.split("/")[-1]: golden[key] for key in golden.arrays if key.startswith(f"{name}/out/")}
        visual = into["visual_mask"].astype(bool)
        share = case["llm_retention_ratio"]
        state = kept_of(into["attentions"][0, :, -1], visual, share, into.get("position_ids"))
        keep = np.asarray(state.source)[0]
        yield exact(f"{name}: keep", keep, out["keep"])
        yield exact(f"{name}: visual_kept", int(np.asarray(state.visual).sum()), out["visual_kept"])
        yield exact(f"{name}: position_ids", state.positions, out["position_ids"])
        yield close(f"{name}: hidden", into["hidden"][:, keep], out["hidden"], 0.0)
        for key in ("cos", "sin"):
            if key in into:
                yield close(f"{name}: {key}", into[key][..., keep, :], out[key], 0.0)
        if "cache_position" in into:
            yield exact(f"{name}: cache_position", into["cache_position"][keep], out["cache_position"])


def compare_decoder(golden: Golden) -> Iterator[Row]:
    """Attention, kept positions, caches, logits, and the steps of the answer."""
    c = golden.config
    text = {
        "hidden_size": c["hidden_size"],
        "intermediate_size": c["intermediate"],
        "num_hidden_layers": c["layers"],
        "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv_heads"],
        "head_dim": c["head_dim"],
        "rope_theta": c["rope_theta"],
        "rms_norm_eps": c["rms_norm_eps"],
    }
    names = {key: key.removeprefix("w/").removeprefix("model.") for key in golden.arrays if key.startswith("w/")}
    embeds, tokens = golden["inputs_embeds"], golden["tokens"]
    length, start = embeds.shape[1], c["visual_token_start_index"]
    slots = np.arange(length)[None]
    visual = (slots >= start) & (slots < start + c["visual_token_length"])
    valid, layer = np.ones((1, length), bool), c["pruning_layer"]
    stage = InnerStage(layer, LastQueryTopK(), Kept(c["llm_retention_ratio"]))
    inner = Inner.create((stage,), visual, valid, layers=c["layers"])
    with jax.default_matmul_precision("highest"):
        decoder = decoder_of({name: golden[key] for key, name in names.items()}, text)
        room = inner.capacities(length, len(tokens))
        cache = decoder.empty_cache(1, room, inner.boundaries)
        read = jax.jit(read_prompt)(decoder, embeds, slots, valid, cache, inner=inner)
        yield from _prompt_rows(golden, decoder, read, layer)
        cache, step, positions = read.cache, jax.jit(Decoder.decode), []
        logits = [read.logits[0]]
        for token in tokens[:-1]:
            positions.append(int(cache.position[0]))
            found, cache = step(decoder, jnp.asarray([token]), cache)
            logits.append(found[0])
    steps = golden["step_logits"]
    yield close("step_logits", np.stack(logits)[: len(steps)], steps, LOGITS)
    yield exact("tokens", np.argmax(np.stack(logits), axis=-1), tokens)
    yield exact("decode_positions", positions, golden["decode_positions"])
    lengths = [int(part.valid.sum()) for part in cache.segments for _ in range(part.start, part.stop)]
    yield exact("cache_lengths", lengths, golden["cache_lengths"])


def _prompt_rows(golden: Golden, decoder: Decoder, read: Read, layer: int) -> Iterator[Row]:
    embeds = golden["inputs_embeds"]
    length = embeds.shape[1]
    slots, valid = np.arange(length)[None], np.ones((1, length), bool)
    rows = jax.jit(Decoder.forward)(decoder, embeds, slots, valid, rows=np.full((1, 1), length - 1)).attention
    yield close("last_query_attention", rows[layer - 1, 0, :, 0], golden["last_query_attention"], ATTENTION)
    mean = golden["last_query_attention"].mean(axis=0)
    yield close("score at the cut", read.cuts[0].score[0], mean, ATTENTION)
    keep = np.flatnonzero(read.cuts[0].survivors[0])
    yield exact("keep", keep, golden["keep"])
    yield close("prefill_logits_last", read.logits, golden["prefill_logits_last"], LOGITS)
    yield exact("prefill_logits_len", read.hidden.shape[1], golden["prefill_logits_len"])
    before, after = read.cache.segments
    for name, keys, size in (("before", before.k[-1], length), ("after", after.k[0], len(keep))):
        ours = np.moveaxis(np.asarray(keys[0, :size]), 0, 1)
        yield close(f"key_cache_{name}", ours, golden[f"key_cache_{name}"], LOGITS)


COMPARERS = [Comparer("flashvid", is_cut, compare_cut), Comparer("flashvid", is_decoder, compare_decoder)]
