"""Float64 expressions of reference code, reproduced bit for bit with int32 arithmetic on traced integers."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

_BITS = 31
_MANTISSA = 52


def multiply_divide(n: Array, a: Array, b: Array) -> tuple[Int[Array, "..."], Int[Array, "..."]]:
    """Quotient and remainder of n * a / b without forming the product.

    Args:
      n: int32, 0 <= n; the quotient must fit int32.
      a: int32, 0 <= a < b.
      b: int32, 1 <= b < 2**29.

    Returns:
      (n * a // b, n * a % b), the broadcast shape, int32.
    """
    n, a, b = jnp.broadcast_arrays(*(jnp.asarray(v, jnp.int32) for v in (n, a, b)))

    def bit(i, state):
        quotient, rest = state
        rest = 2 * rest + jnp.where((n >> (_BITS - 1 - i)) & 1, a, 0)
        carry = (rest >= b).astype(jnp.int32) + (rest >= 2 * b)
        return 2 * quotient + carry, rest - carry * b

    return lax.fori_loop(0, _BITS, bit, (jnp.zeros_like(n), jnp.zeros_like(n)))


def ceil_scaled(n: Array, a: Array, b: Array) -> Int[Array, "..."]:
    """`math.ceil(n * (a / b))` as Python evaluates it in float64, on traced integers.

    The product is off only where n * a is divisible by b and a / b was rounded up: float64 then may exceed the integer
    and `ceil` adds one (1 to 4% of the divisible cases). The rounding of a / b follows from the remainder left after
    its 53 mantissa bits; half-way cases cannot occur, because such a quotient is exact. The product is then rounded
    to nearest and exceeds the integer q exactly if n * error > half the spacing of float64 at q.
    FlashVID's clusters per frame (arXiv 2602.08024; the shares of a segment's budget) are such numbers.

    Args:
      n: int32, 0 <= n < 2**29.
      a: int32, 0 <= a; a >= b gives n.
      b: int32, 1 <= b < 2**29.

    Returns:
      int32, the broadcast shape.
    """
    n, a, b = jnp.broadcast_arrays(*(jnp.asarray(v, jnp.int32) for v in (n, a, b)))
    whole = a >= b
    a_in, b_in = jnp.where(whole | (a <= 0), 1, a), jnp.where(whole | (a <= 0), 2, b)
    quotient, rest = multiply_divide(n, a_in, b_in)

    def normalise(_, state):
        scaled, shift = state
        low = scaled < b_in
        return jnp.where(low, 2 * scaled, scaled), shift + low

    scaled, shift = lax.fori_loop(0, _BITS, normalise, (a_in, jnp.zeros_like(a_in)))

    def double(_, rem):
        rem = 2 * rem
        return jnp.where(rem >= b_in, rem - b_in, rem)

    rem = lax.fori_loop(0, _MANTISSA, double, scaled - b_in)
    rounded_up = 2 * rem > b_in
    log_quotient = _BITS - lax.clz(jnp.maximum(quotient, 1))
    half_spacing = jnp.left_shift(jnp.int32(1), jnp.clip(log_quotient + shift - 1, 0, _BITS - 1))
    error, error_rest = multiply_divide(n, jnp.where(rounded_up, b_in - rem, 0), b_in)
    exceeds = (error > half_spacing) | ((error == half_spacing) & (error_rest > 0))
    extra = (rest > 0) | (rounded_up & (quotient > 0) & exceeds)
    return jnp.where(whole, n, jnp.where(a <= 0, 0, quotient + extra))
