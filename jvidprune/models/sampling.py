"""Which token is taken from logits: penalty, temperature, top-k, top-p and min-p, in the order of transformers."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, Index, NotNegative, Positive, Ratio, Share, checked


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, as transformers' generation settings name it.

    Attributes:
      temperature: 0 takes the most probable token; above, logits are divided by it.
      top_p: share of probability to draw from, in (0, 1].
      top_k: most probable tokens to draw from, 0 for all.
      min_p: tokens below this share of the most probable one's probability are left out, in [0, 1].
      repetition_penalty: logits of ids that stand in the prompt's text or the answer are divided by it where positive
        and multiplied where negative (arXiv 1909.05858); it acts on greedy answers too. 1 is none.

    Raises:
      JvidpruneError: a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checked(self.temperature, NotNegative, "temperature")
        checked(self.top_p, Ratio, "top_p")
        checked(self.top_k, Index, "top_k")
        checked(self.min_p, Share, "min_p")
        checked(self.repetition_penalty, Positive, "repetition_penalty")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature == 0

    @property
    def numbers(self) -> "Numbers":
        """What a compiled program is given, so that it serves all settings."""
        return Numbers(
            jnp.float32(self.temperature),
            jnp.float32(self.top_p),
            jnp.int32(self.top_k),
            jnp.float32(self.min_p),
            jnp.float32(self.repetition_penalty),
        )


GREEDY = Sampling()


class Numbers(NamedTuple):
    """The settings of `Sampling` as arrays, () or (B, 1) one a row."""

    temperature: Any
    top_p: Any
    top_k: Any
    min_p: Any
    repetition_penalty: Any


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, **more: Any) -> Sampling:
    """The settings as one object.

    Args:
      max_new_tokens: longest answer.
      temperature, top_p: see `Sampling`.
      **more: its other settings.

    Raises:
      JvidpruneError: one out of range.
    """
    checked(max_new_tokens, Count, "max_new_tokens")
    return Sampling(temperature, top_p, **more)


def check_stops(stop: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """Texts that end an answer, from one text or several.

    Raises:
      JvidpruneError: an empty text, or what is no text.
    """
    found = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(text, str) or not text for text in found):
        raise JvidpruneError(f"stop texts must be non-empty texts, got {list(found)!r:.200}.")
    return found


def kept_logits(
    logits: Float[Array, "... V"], top_p: Any = 1.0, top_k: Any = 0, min_p: Any = 0.0
) -> Float[Array, "... V"]:
    """-inf on all tokens that are not drawn from.

    First the `top_k` most probable stay (0: all), then of these the smallest set whose probabilities reach `top_p`: a
    token stays if those before it, in decreasing order, sum to less. Then tokens below `min_p` times the largest
    probability go. The most probable token always stays; equal logits go by the lowest id, where transformers keeps
    all that equal the last of top-k.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    rank = jnp.arange(logits.shape[-1])
    few = (rank < top_k) | (jnp.asarray(top_k) == 0)
    probabilities = jax.nn.softmax(jnp.where(few, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    stay = few & (before < top_p) & (probabilities >= min_p * probabilities[..., :1])
    stay = jnp.take_along_axis(stay.at[..., 0].set(True), jnp.argsort(order, axis=-1, stable=True), axis=-1)
    return jnp.where(stay, logits, -jnp.inf)


def penalised(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Any) -> Float[Array, "B V"]:
    """Logits of ids that were seen divided by the penalty where positive, multiplied where negative."""
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def sample(
    logits: Float[Array, "B V"],
    key: Array,
    temperature: Any,
    top_p: Any,
    top_k: Any = 0,
    min_p: Any = 0.0,
    *,
    greedy: bool,
) -> Int[Array, "B"]:
    """One token a row: the most probable one (lowest id among equals), or a draw.

    `key` is one key for all rows, or (B,) keys, with which a row's draw does not depend on the rows beside it. Settings
    are numbers, or (B, 1) one a row, where rows of temperature 0 take the most probable token.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if greedy:
        return best
    warm = jnp.asarray(temperature) > 0
    kept = kept_logits(logits.astype(jnp.float32) / jnp.where(warm, temperature, 1.0), top_p, top_k, min_p)
    draw = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
    drawn = draw(key, kept).astype(jnp.int32)
    return jnp.where(jnp.broadcast_to(warm, (*logits.shape[:-1], 1))[..., 0], drawn, best)


def step_key(key: Array, step: Any) -> Array:
    """The key of a step: of one key, or of (B,) keys, whose rows may be at steps (B,) of their own."""
    if not key.ndim:
        return jax.random.fold_in(key, step)
    return jax.vmap(jax.random.fold_in)(key, jnp.broadcast_to(jnp.asarray(step, jnp.int32), key.shape))
