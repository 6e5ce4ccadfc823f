"""Exact `ceil(n * v)` and `round(n * v)` of float64 products, for counts whose ratio depends on the data.

A float32 product lands on the wrong side of an integer now and then, and jitted code has no float64. The host turns
each double v into 72 bits of fixed point; the graph multiplies them by an int32 and then applies the rounding that the
float64 product would have had, so counts equal those of Python float arithmetic.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

_LIMB_BITS = 12
_LIMBS = 6
_MASK = (1 << _LIMB_BITS) - 1
_HALF_TOP = 1 << (_LIMB_BITS - 1)


def fraction_words(values: np.ndarray) -> np.ndarray:
    """Doubles in [0, 1] as three 24-bit words (..., 3) int32, most significant first; exact above 2^-20."""
    rest = np.asarray(values, np.float64)
    words = []
    for _ in range(3):
        rest = rest * 2.0**24
        whole = np.floor(rest)
        words.append(whole.astype(np.int32))
        rest = rest - whole
    return np.stack(words, axis=-1)


def _multiply(words: Array, n: Array) -> tuple[Array, list[Array]]:
    """Integer part of n * v and its fraction as 12-bit limbs, least significant first; n < 2^18."""
    carry = jnp.zeros(jnp.broadcast_shapes(words.shape[:-1], n.shape), jnp.int32)
    fraction = []
    for index in range(_LIMBS):
        word = words[..., 2 - index // 2]
        limb = word & _MASK if index % 2 == 0 else word >> _LIMB_BITS
        total = n * limb + carry
        fraction.append(total & _MASK)
        carry = total >> _LIMB_BITS
    return carry, fraction


def _power_limbs(bit: Array) -> list[Array]:
    """2^bit in the units of the last place, as limbs."""
    return [jnp.where(bit // _LIMB_BITS == i, 1 << (bit % _LIMB_BITS), 0) for i in range(_LIMBS)]


def _at_most(left: list[Array], right: list[Array]) -> Array:
    """Lexicographic left <= right of limbs, least significant first."""
    result = jnp.ones(left[0].shape, bool)
    for a, b in zip(left, right, strict=True):
        result = (a < b) | ((a == b) & result)
    return result


def _half_ulp_bit(whole: Array) -> Array:
    """Bit of half a unit in the last place of a double in [whole, whole + 1), whole >= 1."""
    exponent = jnp.sum((whole[..., None] >> jnp.arange(1, 19)) > 0, axis=-1)
    return 19 + exponent


def ceil_product(words: Int[Array, "... 3"], n: Int[Array, "..."]) -> Int[Array, "..."]:
    """`math.ceil(n * v)` of the float64 product, n < 2^18; `words` come from `fraction_words`.

    A product that exceeds an integer by at most half a unit in the last place has been rounded to that integer.
    """
    n = jnp.asarray(n, jnp.int32)
    whole, fraction = _multiply(words, n)
    rounded_off = _at_most(fraction, _power_limbs(_half_ulp_bit(whole)))
    some = jnp.stack(fraction).any(axis=0)
    return whole + jnp.where(whole > 0, ~rounded_off, some).astype(jnp.int32)


def round_product(words: Int[Array, "... 3"], n: Int[Array, "..."]) -> Int[Array, "..."]:
    """`round(n * v)` (half to even) of the float64 product, n < 2^18; `words` come from `fraction_words`."""
    n = jnp.asarray(n, jnp.int32)
    whole, fraction = _multiply(words, n)
    # Below 1/2 the last place is half as wide as above it.
    bit_above = jnp.where(whole > 0, _half_ulp_bit(whole), 18)
    bit_below = jnp.where(whole > 0, _half_ulp_bit(whole), 17)
    limit = _power_limbs(bit_above)
    limit[-1] = limit[-1] + _HALF_TOP
    carry = jnp.zeros_like(whole)
    for limb, step in zip(fraction, _power_limbs(bit_below), strict=True):
        total = limb + step + carry
        carry, top = total >> _LIMB_BITS, total & _MASK
    reaches_half = (top >= _HALF_TOP) | (carry > 0)
    is_half = reaches_half & _at_most(fraction, limit)
    above = fraction[-1] >= _HALF_TOP
    return whole + jnp.where(is_half, whole & 1, above.astype(jnp.int32))
