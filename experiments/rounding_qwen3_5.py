"""How much of Qwen3.5's attention at full width is float32 rounding: the port, and numpy in float32 and in float64.

    python experiments/rounding_qwen3_5.py

Three recurrent layers and one with attention at the widths of the 9B, random weights, 96 tokens. The numpy code follows
the equations token by token and shares none with the port. Printed are the largest deviations from float64: of the
states that enter the attention, and of the attention weights of the last token. It takes a minute and 5 GB;
`docs/models.md` has the numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_qwen3_5 import FULL

from jvidprune.models.decoder_layer import DecoderLayer, Step
from jvidprune.models.delta import DeltaLayer, Order, empty_carried
from jvidprune.models.qwen3_5 import Config
from jvidprune.models.rope import rope_tables

TOKENS, NOISE = 96, 1e-6
"""Tokens; standard deviation of what is added to the tokens in one run, as between two float32 towers."""

CONFIG = Config.from_hf(FULL).text
Weights = dict[str, np.ndarray]


def made(kind: Callable[..., nnx.Module], rng: np.random.Generator) -> tuple[Any, Weights]:
    """A layer with random float16 numbers as float32 weights, and these by name."""
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    found, filled = {}, []
    for path, variable in nnx.to_flat_state(state):
        name, shape = ".".join(map(str, path)), variable.shape
        value = rng.standard_normal(shape, dtype=np.float32)
        value = 0.2 * value + name.endswith("scale") if len(shape) == 1 else 0.9 * shape[0] ** -0.5 * value
        found[name] = value.astype(np.float16).astype(np.float32)
        filled.append((path, variable.replace(jnp.asarray(found[name]))))
    return nnx.merge(graph, nnx.from_flat_state(filled)), found


def normed(x: np.ndarray, weight: np.ndarray, more: int = 1) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(CONFIG.eps)) * (more + weight.astype(x.dtype))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def recurrent(x: np.ndarray, weights: Weights) -> np.ndarray:
    """A recurrent layer in the type of x (S, D)."""
    delta, kind, length = CONFIG.delta, x.dtype.type, len(x)
    assert delta is not None

    def times(y: np.ndarray, name: str) -> np.ndarray:
        return y @ weights[f"{name}.kernel"].astype(kind)

    def unit(y: np.ndarray) -> np.ndarray:
        y = y.reshape(length, delta.key_heads, -1)
        y = y / np.sqrt((y * y).sum(-1, keepdims=True) + kind(1e-6))
        return np.repeat(y, delta.value_heads // delta.key_heads, axis=1)

    entering, parts = normed(x, weights["norm1.scale"]), []
    for name in "qkv":
        taps = weights[f"delta.taps_{name}"].astype(kind)
        row = np.pad(times(entering, f"delta.{name}"), ((len(taps) - 1, 0), (0, 0)))
        parts.append(silu(np.sum([row[i : i + length] * tap for i, tap in enumerate(taps)], axis=0)))
    q, k = unit(parts[0]) * kind(delta.key_dim**-0.5), unit(parts[1])
    v = parts[2].reshape(length, delta.value_heads, -1)
    beta = 1 / (1 + np.exp(-times(entering, "delta.b")))
    rate = np.log1p(np.exp(times(entering, "delta.a") + weights["delta.dt_bias"].astype(kind)))
    left = np.exp(-np.exp(weights["delta.a_log"].astype(kind)) * rate)
    state, out = np.zeros((delta.value_heads, delta.key_dim, delta.value_dim), kind), []
    for t in range(length):
        state = state * left[t][:, None, None]
        fresh = (v[t] - np.einsum("hde,hd->he", state, k[t])) * beta[t][:, None]
        state = state + k[t][:, :, None] * fresh[:, None]
        out.append(np.einsum("hde,hd->he", state, q[t]))
    gate = silu(times(entering, "delta.z")).reshape(v.shape)
    x = x + times((normed(np.stack(out), weights["delta.norm.scale"], 0) * gate).reshape(length, -1), "delta.o")
    entering = normed(x, weights["norm2.scale"])
    return x + times(silu(times(entering, "mlp.gate")) * times(entering, "mlp.up"), "mlp.down")


def paid(x: np.ndarray, weights: Weights) -> np.ndarray:
    """Attention weights (H, S) of the last token in the type of x (S, D)."""
    kind, length, dim, turning = x.dtype.type, len(x), CONFIG.head_dim, CONFIG.rope.turning(CONFIG.head_dim)
    entering = normed(x, weights["norm1.scale"])
    # Angles are float32 numbers in the reference.
    angles = np.arange(length, dtype=np.float32)[:, None] * CONFIG.rope.frequencies(dim).astype(np.float32)
    angles = np.tile(angles.astype(kind), 2)[:, None]

    def heads(name: str) -> np.ndarray:
        # Each head's queries stand in front of its gate.
        y = entering @ weights[f"attn.{name}.kernel"].astype(kind)
        y = y.reshape(length, -1, dim * (2 if name == "q" else 1))
        y = normed(y[..., :dim], weights[f"attn.{name}_norm.scale"])
        first, second = np.split(y[..., :turning], 2, axis=-1)
        turned = y[..., :turning] * np.cos(angles) + np.concatenate([-second, first], axis=-1) * np.sin(angles)
        return np.concatenate([turned, y[..., turning:]], axis=-1)

    keys = np.repeat(heads("k"), CONFIG.heads // CONFIG.kv_heads, axis=1)
    scores = np.einsum("hd,shd->hs", heads("q")[-1], keys) * kind(dim**-0.5)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@jax.jit
def _recur(layer: DeltaLayer, x: jax.Array) -> jax.Array:
    empty = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), empty_carried(CONFIG, (1,), x.dtype))
    return layer.feed(layer.mix(x, Order.of(jnp.ones(x.shape[:2], bool), True), empty)[0])


@jax.jit
def _attend(layer: DecoderLayer, x: jax.Array) -> jax.Array:
    cos, sin = rope_tables(CONFIG.rope, CONFIG.head_dim, jnp.arange(TOKENS)[None], x.dtype)
    step = Step(cos, sin, jnp.ones((1, TOKENS), bool), True)
    return layer.mix(x, step, None, causal=True, rows=jnp.full((1, 1), TOKENS - 1))[2][0, :, 0]


def main() -> None:
    """Prints the table."""
    rng = np.random.default_rng(0)
    start = 0.5 * rng.standard_normal((TOKENS, CONFIG.width), dtype=np.float32)
    exact = start.astype(np.float64)
    ours, states = jnp.asarray(start)[None], {"numpy": start, "moved": exact + NOISE * rng.standard_normal(start.shape)}
    for _ in range(3):
        layer, weights = made(DeltaLayer, rng)
        ours, exact = _recur(layer, ours), recurrent(exact, weights)
        states = {name: recurrent(x, weights) for name, x in states.items()}
    layer, weights = made(DecoderLayer, rng)
    true, entering = paid(exact, weights), np.asarray(ours[0])
    found = {"port, float32": (entering, np.asarray(_attend(layer, ours)))}
    found["numpy, float32"] = states["numpy"], paid(states["numpy"], weights)
    found["float64 behind the port's states"] = entering, paid(entering.astype(np.float64), weights)
    found["float64, tokens moved by 1e-6"] = states["moved"], paid(states["moved"], weights)
    print(f"states: root mean square {np.sqrt((exact**2).mean()):.1f}; largest weight {true.max():.3f}")
    for name, (x, weight) in found.items():
        print(f"{name}: states {np.abs(x - exact).max():.1e}, weights {np.abs(weight - true).max():.1e}")
    apart = np.abs(found["port, float32"][1] - found["numpy, float32"][1]).max()
    print(f"port and numpy, both float32, apart: {apart:.1e}")


if __name__ == "__main__":
    main()
