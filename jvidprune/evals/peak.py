"""The most memory that answering holds: from the statistics of the device, else from what XLA says of the programs."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import nnx

from jvidprune import parallel
from jvidprune.llm.batch import Prompt, lower_batch
from jvidprune.llm.encoded import ReducedVideo, shows_diagnostics
from jvidprune.llm.opening import lower_encode
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.reducers.run import lower_sweep

Source = Literal["device", "programs", ""]
"""Where a peak is from: a device's own statistics, XLA's memory analysis of the compiled programs, or nowhere."""


class PeakWatch:
    """Sees whether the peak of the first local device rises; JAX has no way to set it back."""

    def __init__(self) -> None:
        self._before = _device_peak()

    def risen(self) -> tuple[int, Source]:
        """The device's peak if it has risen since then, else nothing: it then belongs to what ran before."""
        now = _device_peak()
        return (now, "device") if now > self._before else (0, "")


def _device_peak() -> int:
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0))


def programs_peak(
    llm: VideoLLM, video: ReducedVideo, prompts: Sequence[Prompt], *, max_new_tokens: int
) -> tuple[int, Source]:
    """Weights, and the most that any of the programs of an answer holds beside them, in bytes of one device.

    The encoded video stays while prompts are read and answered. A method that runs the tower on (STTS) is counted
    without its own programs.

    Args:
      llm: the model.
      video: whose programs have run, so that all of them are compiled.
      prompts: read together.
      max_new_tokens: longest answer.

    Returns:
      Bytes and "programs"; 0 and "" where this backend's compiler does not tell.
    """
    encoded, tokens = video.video, video.video.tokens
    features = sum(_on_first(leaf) for leaf in jax.tree.leaves(tokens))
    weights = _weights(llm.loaded.model)
    decoder = sum(size for path, size in weights.items() if path.startswith("lm."))
    total = sum(weights.values())
    found = []
    if encoded.frames is not None:
        needs = frozenset(tokens.evidence)
        source = encoded.frames if encoded.clip is None else encoded.clip
        grid = None if video.whole is None else tokens.grid
        found.append(_held(lower_encode(llm, source, needs, grid), total - decoder))
    shown = shows_diagnostics(video.reducer, video.inner)
    reduction = lower_sweep(video.reducer, tokens, [video.ratio], diagnostics=shown)
    found += [] if reduction is None else [_held(reduction, 0)]
    for program in lower_batch(llm, prompts, max_new_tokens=max_new_tokens).values():
        held = _held(program, decoder)
        found.append(None if held is None else held + features)
    known = [held for held in found if held is not None]
    return (total + max(known), "programs") if len(known) == len(found) else (0, "")


def _held(lowered: Any, weights: int) -> int | None:
    """Bytes that a program holds beside the weights that it reads, or None where XLA does not say."""
    memory = lowered.compile().memory_analysis()
    if memory is None:
        return None
    given = max(0, memory.argument_size_in_bytes - weights)
    return given + memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)


def _weights(model: Any) -> dict[str, int]:
    """Bytes of each parameter on one device, by its dotted path."""
    leaves = jax.tree_util.tree_flatten_with_path(nnx.state(model))[0]
    found: dict[str, int] = {}
    for path, leaf in leaves:
        # Values and scales of a quantised parameter go by one name.
        found[parallel.dotted(path)] = found.get(parallel.dotted(path), 0) + _on_first(leaf)
    return found


def _on_first(leaf: jax.Array) -> int:
    return leaf.addressable_shards[0].data.nbytes
