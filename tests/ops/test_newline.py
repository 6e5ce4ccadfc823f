"""Newline layouts: every kind against a written-out list, padding, unordered rows, capacity and bad names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reducer_checks import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from jvidprune.ops import newline

GRID, FRAMES, K = (2, 3), 4, 14


def written_out(ids, kind, rows, real):
    """The layout as a plain loop: (source row or -1 for a newline, place in the full layout)."""
    h, w = GRID
    n = h * w
    out = []
    if kind in ("one_token", "no_token"):
        out = [(i, int(token)) for i, token in enumerate(ids)]
        return out + [(-1, real * n)] * (kind == "one_token")
    for t in range(real):
        mine = [(int(token) % n, i) for i, token in enumerate(ids) if token // n == t]
        if kind == "frame":
            out += [(i, t * (n + 1) + cell) for cell, i in mine] + [(-1, t * (n + 1) + n)]
            continue
        mine.sort()
        place = t * h * (w + 1)
        for r in range(h):
            inside = [(i, place + r * (w + 1) + cell % w) for cell, i in mine if cell // w == r]
            newline_here = rows == "all" or (rows == "nonempty" and inside)
            out += inside + [(-1, place + r * (w + 1) + w)] * bool(newline_here)
        if rows == "after_frame":
            out += [(-1, place + r * (w + 1) + w) for r in range(h)]
    return out


LAYOUTS = [("one_token", "all"), ("no_token", "all"), ("frame", "all")]
LAYOUTS += [("grid", rows) for rows in newline.ROWS]


@pytest.mark.parametrize(("kind", "rows"), LAYOUTS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_layouts_equal_a_plain_loop(kind, rows, data):
    real = data.draw(st.integers(1, FRAMES))
    ids = data.draw(st.lists(st.integers(0, real * 6 - 1), max_size=K))
    padded = np.array(ids + [FRAMES * 6] * (K - len(ids)), np.int32)
    laid = newline.arrange(
        padded, np.arange(K) < len(ids), kind=kind, grid=GRID, frames=FRAMES, rows=rows, real_frames=real
    )
    expected = written_out(ids, kind, rows, real)
    count = int(laid.count)
    assert count == len(expected)
    np.testing.assert_array_equal(laid.valid, np.arange(laid.valid.size) < count)
    source = np.where(laid.is_newline, -1, laid.source)[:count]
    np.testing.assert_array_equal(source, [row for row, _ in expected])
    np.testing.assert_array_equal(laid.position[:count], [place for _, place in expected])
    assert (np.asarray(laid.source)[count:] == K).all()


@pytest.mark.parametrize("kind", newline.KINDS)
def test_all_tokens_give_the_models_own_layout(kind):
    ids = jnp.arange(24)
    laid = newline.arrange(ids, ids >= 0, kind=kind, grid=GRID, frames=FRAMES)
    np.testing.assert_array_equal(laid.position, np.arange(newline.full_length(kind, GRID, FRAMES)))


def test_the_sequence_holds_tokens_newlines_and_zeros():
    tokens, mark = jnp.arange(6.0).reshape(3, 2) + 1, jnp.array([-5.0, -5.0])
    valid = jnp.array([True, True, False])
    laid = newline.arrange(jnp.array([1, 7, 24]), valid, kind="frame", grid=GRID, frames=2, capacity=8)
    expected = [[1, 2], [-5, -5], [3, 4], [-5, -5]] + [[0, 0]] * 4
    np.testing.assert_array_equal(newline.sequence(laid, tokens, mark), expected)


def test_layouts_batch_and_tell_of_too_small_a_capacity():
    ids = jnp.stack([jnp.arange(4), jnp.arange(4) + 6])
    valid = jnp.array([[True] * 4, [True, True, False, False]])

    def lay(i, v, real):
        return newline.arrange(i, v, kind="grid", grid=GRID, frames=2, capacity=5, real_frames=real)

    laid = jax.jit(jax.vmap(lay))(ids, valid, jnp.array([1, 2]))
    np.testing.assert_array_equal(laid.count, [6, 6])
    assert laid.source.shape == (2, 5)
    np.testing.assert_array_equal(laid.position[1], [3, 7, 8, 9, 11])


def test_unknown_layouts_are_refused():
    ids = jnp.arange(3)
    refused(lambda: newline.arrange(ids, ids >= 0, kind="rows", grid=GRID, frames=2), "newline layout 'rows'")
    refused(
        lambda: newline.arrange(ids, ids >= 0, kind="grid", grid=GRID, frames=2, rows="some"), "newline rows 'some'"
    )
