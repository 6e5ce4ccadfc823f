"""Rotary position embedding: one axis (Qwen2), three axes in sections (Qwen2.5-VL) or interleaved (Qwen3-VL)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jvidprune.errors import JvidpruneError, quoted


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Frequencies stretched for sequences longer than those of the pre-training (YaRN, arXiv 2309.00071).

    Attributes:
      factor: by which slow frequencies are divided.
      original: positions of the pre-training.
      fast: frequencies that turn at least so often over `original` stay as they are.
      slow: those that turn at most so often are divided in full; between the two, linearly in their index.
      attention: what cos and sin are multiplied by, 0.1 ln(factor) + 1 in the paper.
    """

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float = 1.0

    @classmethod
    def from_hf(cls, scaling: Mapping[str, Any]) -> "Yarn":
        """Reads `rope_scaling` or `rope_parameters` of type yarn.

        Raises:
          JvidpruneError: no factor or no original length, or options that no supported model has.
        """
        factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
        if not factor or not original:
            raise JvidpruneError("yarn needs factor and original_max_position_embeddings in the rope settings.")
        for name in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"):
            value = scaling.get(name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < 1e9):
                raise JvidpruneError(f"yarn's {name} must be a number of at least 0, got {quoted(value)}.")
        if odd := [key for key in ("mscale", "mscale_all_dim") if scaling.get(key)]:
            raise JvidpruneError(f"yarn with {odd[0]} is not supported.")
        if not scaling.get("truncate", True):
            raise JvidpruneError("yarn with truncate=false is not supported.")
        default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        attention = scaling.get("attention_factor")
        return cls(
            factor=float(factor),
            original=int(original),
            fast=float(scaling.get("beta_fast") or 32.0),
            slow=float(scaling.get("beta_slow") or 1.0),
            attention=default if attention is None else float(attention),
        )

    def stretch(self, inverse: np.ndarray, theta: float) -> np.ndarray:
        """(d / 2,) frequencies of a head of d channels and base theta, stretched."""
        dim = 2 * len(inverse)

        def index(turns: float) -> float:
            return dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(index(self.fast)), 0), min(math.ceil(index(self.slow)), dim - 1)
        ramp = np.clip((np.arange(len(inverse)) - low) / max(high - low, 1e-3), 0.0, 1.0)
        return inverse * (1.0 - ramp) + inverse / self.factor * ramp


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
      theta: base of the frequencies theta^(-2j/d).
      sections: how many of the d/2 frequencies belong to time, height and width, or None for ordinary rotary.
      interleaved: whether height and width take every third frequency instead of consecutive blocks.
      yarn: stretched frequencies, or None.
      partial: share of a head's channels that turn, the first ones; the others stay as they are (Qwen3.5).
    """

    theta: float = 10000.0
    sections: tuple[int, int, int] | None = None
    interleaved: bool = False
    yarn: Yarn | None = None
    partial: float = 1.0

    @classmethod
    def from_hf(cls, text: Mapping[str, Any], default_theta: float = 10000.0) -> "RopeConfig":
        """Reads `rope_theta` + `rope_scaling` (published layout) or `rope_parameters` (re-saved by transformers 5).

        Args:
          text: the text part of a config.json.
          default_theta: base where it names none.

        Raises:
          JvidpruneError: a rope type that changes the frequencies in a way that is not here (linear, dynamic, ...), or
            yarn without what it needs.
        """
        scaling = text.get("rope_scaling") or {}
        parameters = {**scaling, **(text.get("rope_parameters") or {})}
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        allowed = ("default", "mrope", "yarn")
        if kind not in allowed:
            raise JvidpruneError(f"rope type {kind!r} is not supported; allowed: {', '.join(allowed)}.")
        theta = parameters.get("rope_theta", text.get("rope_theta", default_theta))
        yarn = None
        if kind == "yarn":
            given = parameters.get("original_max_position_embeddings") or text.get("max_position_embeddings")
            yarn = Yarn.from_hf({**parameters, "original_max_position_embeddings": given})
        sections = parameters.get("mrope_section")
        interleaved = bool(parameters.get("mrope_interleaved", False))
        return cls(float(theta), tuple(sections) if sections else None, interleaved, yarn)

    @property
    def plain(self) -> "RopeConfig":
        """The same without stretched frequencies."""
        return dataclasses.replace(self, yarn=None)

    def turning(self, head_dim: int) -> int:
        """How many channels of a head turn."""
        return int(head_dim * self.partial)

    def frequencies(self, head_dim: int) -> np.ndarray:
        """(turning / 2,) float64 radians a position."""
        turning = self.turning(head_dim)
        inverse = self.theta ** (-np.arange(0, turning, 2, dtype=np.float64) / turning)
        return inverse if self.yarn is None else self.yarn.stretch(inverse, self.theta)

    def axis_of(self, head_dim: int) -> np.ndarray:
        """(turning / 2,) which position axis (0 time, 1 height, 2 width) turns each frequency.

        Raises:
          JvidpruneError: sections that do not add up to half the channels that turn.
        """
        half = self.turning(head_dim) // 2
        axis = np.zeros(half, np.int32)
        if self.sections is None:
            return axis
        if sum(self.sections) != half:
            which = "half the head dimension" if self.partial == 1 else "half the channels of a head that turn"
            raise JvidpruneError(f"rope sections {self.sections} must add up to {which}, {half}.")
        if self.interleaved:
            for k in (1, 2):
                axis[k : 3 * self.sections[k] : 3] = k
            return axis
        return np.repeat(np.arange(3, dtype=np.int32), self.sections)


def rope_tables(
    config: RopeConfig, head_dim: int, positions: Int[Array, "... B S"], dtype: Any
) -> tuple[Float[Array, "B S d"], Float[Array, "B S d"]]:
    """cos and sin of every position, frequencies duplicated on both halves, YaRN's factor included.

    d are the channels of a head that turn, by default all `head_dim`.

    Args:
      config: kind of rotary.
      head_dim: even.
      positions: (B, S), or (3, B, S) time, height, width; (B, S) counts as equal ids on all axes.
      dtype: dtype of the result; angles are float32 whatever it is.
    """
    inverse = jnp.asarray(config.frequencies(head_dim), jnp.float32)
    wide = positions.astype(jnp.float32)
    if positions.ndim == 2:
        angles = wide[..., None] * inverse
    else:
        # (3, B, S) -> (B, S, d/2): each frequency reads the axis it belongs to.
        angles = jnp.moveaxis(wide, 0, -1)[..., config.axis_of(head_dim)] * inverse
    angles = jnp.concatenate([angles, angles], axis=-1)
    scale = 1.0 if config.yarn is None else config.yarn.attention
    return (jnp.cos(angles) * scale).astype(dtype), (jnp.sin(angles) * scale).astype(dtype)


def rotate(
    x: Float[Array, "B S H d"], cos: Float[Array, "B S r"], sin: Float[Array, "B S r"]
) -> Float[Array, "B S H d"]:
    """x cos + rot(x) sin with rot(x) = (-second half, first half), of the first r channels where r is less than d."""
    if (turning := cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :turning], cos, sin), x[..., turning:]], axis=-1)
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos[:, :, None, :] + turned * sin[:, :, None, :]


def grid_rope_tables(
    coordinates: Int[np.ndarray, "M 2"], head_dim: int, theta: float = 10000.0
) -> tuple[Float[Array, "1 M d"], Float[Array, "1 M d"]]:
    """cos and sin, (1, M, head_dim) float32 constants, of a vision tower's 2-D rotary: row angles, then column angles.

    Row and column each turn head_dim / 4 frequencies theta^(-4j / head_dim); the halves of the head carry equal angles.

    Args:
      coordinates: (M, 2) row and column of each patch in its frame.
      head_dim: d, a multiple of 4.
      theta: base of the frequencies.
    """
    inverse = theta ** (-np.arange(0, head_dim // 2, 2, dtype=np.float64) / (head_dim // 2))
    angles = np.asarray(coordinates, np.float32)[:, :, None] * inverse.astype(np.float32)
    angles = np.tile(angles.reshape(len(coordinates), -1), 2)[None]
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))
