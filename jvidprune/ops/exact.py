"""Exact `ceil(n * v)` and `round(n * v)` of float64 products, on traced integers.

A float32 product lands on the wrong side of an integer now and then, and jitted code has no float64. A double v becomes
72 bits of fixed point, on the host (`fraction_words`) or from two traced integers (`quotient_words`); the graph
multiplies them by an int32 and then applies the rounding that the float64 product would have had, so counts equal those
of Python float arithmetic.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

_WORDS = 3
_WORD_BITS = 24
_LIMB_BITS = 12
_LIMBS = 6
_MASK = (1 << _LIMB_BITS) - 1
_HALF_TOP = 1 << (_LIMB_BITS - 1)
_MANTISSA = 53


def fraction_words(values: np.ndarray) -> np.ndarray:
    """Doubles in [0, 1] as three 24-bit words (..., 3) int32, most significant first; exact above 2^-20."""
    rest = np.asarray(values, np.float64)
    words = []
    for _ in range(_WORDS):
        rest = rest * 2.0**_WORD_BITS
        whole = np.floor(rest)
        words.append(whole.astype(np.int32))
        rest = rest - whole
    return np.stack(words, axis=-1)


def quotient_words(a: Int[Array, "..."], b: Int[Array, "..."]) -> Int[Array, "... 3"]:
    """The float64 quotient a / b of traced integers as `fraction_words`.

    Long division gives its 53 significant bits, what is left over says how float64 rounds the last one; a remainder of
    exactly a half cannot occur, because such a quotient is exact.

    Args:
      a: int32, 0 <= a; where a >= b the quotient counts as 1.
      b: int32, 1 <= b < 2^30; a / b must be 0 or above 2^-20.

    Returns:
      int32, the broadcast shape with an axis of 3 words.
    """
    a, b = jnp.broadcast_arrays(*(jnp.asarray(v, jnp.int32) for v in (a, b)))
    whole = a >= b

    def divide(_, state):
        word, rest, taken, left_over = state
        rest = 2 * rest
        bit = (rest >= b) & (taken < _MANTISSA)
        rest = rest - jnp.where(rest >= b, b, 0)
        # The first significant bit starts the count.
        counts = bit | (taken > 0)
        last = counts & (taken == _MANTISSA - 1)
        return 2 * word + bit, rest, taken + counts, jnp.where(last, 2 * rest > b, left_over)

    def words_of(state, _):
        rest, taken, left_over = state
        # Where a word ends the significant bits, its share of the last place is known.
        before = taken
        word, rest, taken, left_over = lax.fori_loop(0, _WORD_BITS, divide, (jnp.zeros_like(a), rest, taken, left_over))
        ends = (before < _MANTISSA) & (taken >= _MANTISSA)
        place = jnp.left_shift(1, jnp.clip(taken - _MANTISSA, 0, _WORD_BITS - 1))
        return (rest, taken, left_over), (word, jnp.where(ends, place, 0))

    start = (jnp.where(whole, 0, a), jnp.zeros_like(a), jnp.zeros(a.shape, bool))
    (_, _, rounds_up), (words, places) = lax.scan(words_of, start, length=_WORDS)
    carry = jnp.zeros_like(a)
    rounded = []
    for word, place in zip(words[::-1], places[::-1], strict=True):
        total = word + jnp.where(rounds_up, place, 0) + carry
        carry = total >> _WORD_BITS
        rounded.append(total & ((1 << _WORD_BITS) - 1))
    top = jnp.where(whole, 1 << _WORD_BITS, rounded[-1])
    return jnp.stack([top, *rounded[-2::-1]], axis=-1)


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
    """`math.ceil(n * v)` of the float64 product, n < 2^18.

    A product that exceeds an integer by at most half a unit in the last place has been rounded to that integer.

    Args:
      words: v, from `fraction_words` or `quotient_words`.
      n: int32.
    """
    n = jnp.asarray(n, jnp.int32)
    whole, fraction = _multiply(words, n)
    rounded_off = _at_most(fraction, _power_limbs(_half_ulp_bit(whole)))
    some = jnp.stack(fraction).any(axis=0)
    return whole + jnp.where(whole > 0, ~rounded_off, some).astype(jnp.int32)


def round_product(words: Int[Array, "... 3"], n: Int[Array, "..."]) -> Int[Array, "..."]:
    """`round(n * v)` (half to even) of the float64 product, n < 2^18; `words` as for `ceil_product`."""
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


def ceil_scaled(n: Int[Array, "..."], a: Int[Array, "..."], b: Int[Array, "..."]) -> Int[Array, "..."]:
    """`math.ceil(n * (a / b))` as Python evaluates it in float64; a >= b gives n.

    It differs from the integer ceiling where n * a is divisible by b and a / b was rounded up (1 to 4% of such cases).
    FlashVID's clusters per frame (arXiv 2602.08024; the shares of a segment's budget) are such numbers.

    Args:
      n: int32, 0 <= n < 2^18.
      a, b: as for `quotient_words`.
    """
    return ceil_product(quotient_words(a, b), jnp.asarray(n, jnp.int32))
