"""Rotary position embedding: one axis (Qwen2), three axes in sections (Qwen2.5-VL) or interleaved (Qwen3-VL)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jvidprune.errors import JvidpruneError


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """How positions become angles.

    Attributes:
      theta: base of the frequencies theta^(-2j/d).
      sections: how many of the d/2 frequencies belong to time, height and width, or None for ordinary rotary.
      interleaved: whether height and width take every third frequency instead of consecutive blocks.
    """

    theta: float = 10000.0
    sections: tuple[int, int, int] | None = None
    interleaved: bool = False

    @classmethod
    def from_hf(cls, text: Mapping[str, Any], default_theta: float = 10000.0) -> "RopeConfig":
        """Reads `rope_theta` + `rope_scaling` (published layout) or `rope_parameters` (re-saved by transformers 5).

        Raises:
          JvidpruneError: a rope type that changes the frequencies (yarn, linear, dynamic, ...).
        """
        scaling = text.get("rope_scaling") or {}
        parameters = {**scaling, **(text.get("rope_parameters") or {})}
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise JvidpruneError(f"rope type {kind!r} is not supported; allowed: default, mrope.")
        theta = parameters.get("rope_theta", text.get("rope_theta", default_theta))
        sections = parameters.get("mrope_section")
        return cls(
            float(theta), tuple(sections) if sections else None, bool(parameters.get("mrope_interleaved", False))
        )

    def axis_of(self, head_dim: int) -> np.ndarray:
        """(head_dim / 2,) which position axis (0 time, 1 height, 2 width) turns each frequency."""
        half = head_dim // 2
        axis = np.zeros(half, np.int32)
        if self.sections is None:
            return axis
        if sum(self.sections) != half:
            raise JvidpruneError(f"rope sections {self.sections} must add up to half the head dimension, {half}.")
        if self.interleaved:
            for k in (1, 2):
                axis[k : 3 * self.sections[k] : 3] = k
            return axis
        return np.repeat(np.arange(3, dtype=np.int32), self.sections)


def rope_tables(
    config: RopeConfig, head_dim: int, positions: Int[Array, "... B S"], dtype: Any
) -> tuple[Float[Array, "B S d"], Float[Array, "B S d"]]:
    """cos and sin of every position, d = head_dim, frequencies duplicated on both halves.

    Args:
      config: kind of rotary.
      head_dim: d, even.
      positions: (B, S), or (3, B, S) time, height, width; (B, S) counts as equal ids on all axes.
      dtype: dtype of the result; angles are float32 whatever it is.
    """
    inverse = jnp.asarray(config.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim), jnp.float32)
    wide = positions.astype(jnp.float32)
    if positions.ndim == 2:
        angles = wide[..., None] * inverse
    else:
        # (3, B, S) -> (B, S, d/2): each frequency reads the axis it belongs to.
        angles = jnp.moveaxis(wide, 0, -1)[..., config.axis_of(head_dim)] * inverse
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(
    x: Float[Array, "B S H d"], cos: Float[Array, "B S d"], sin: Float[Array, "B S d"]
) -> Float[Array, "B S H d"]:
    """x cos + rot(x) sin with rot(x) = (-second half, first half)."""
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
