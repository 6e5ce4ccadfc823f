"""Questions in reducers: one reduction a question, padding rows, batches, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reducer_checks import make_video

import jvidprune
from jvidprune.errors import JvidpruneError
from jvidprune.ops import compact
from jvidprune.reducers import CDPruner, Sequential, SToP

VIDEO = dataclasses.replace(make_video(), evidence={})
WIDTH = VIDEO.features.shape[-1]
TEXT = np.random.default_rng(3).normal(size=(3, 5, WIDTH)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], bool)


class CountsRows:
    """Keeps the token whose id is the number of rows of the question; knows nothing of padding."""

    needs = frozenset({"text"})

    def budget(self, layout, ratio):
        return np.int32(1)

    def capacity(self, layout, ratio):
        return 1

    def plan(self, video, budget, *, capacity):
        frames, tokens, _ = video.features.shape
        return compact.selection_plan(jnp.arange(frames * tokens) == video.evidence["text"].shape[0], capacity)


@pytest.mark.slow
def test_many_questions_are_one_reduction_each():
    together = jvidprune.reduce("cdpruner", VIDEO, 0.3, text=TEXT, text_mask=MASK)
    swept = jvidprune.sweep("cdpruner", VIDEO, [0.3, 0.1], text=TEXT, text_mask=MASK)
    assert len({tuple(row) for row in np.asarray(together.index).tolist()}) == 3
    for number, (text, mask) in enumerate(zip(TEXT, MASK, strict=True)):
        alone = jvidprune.reduce(CDPruner(), VIDEO, 0.3, text=text[mask])
        padded = jvidprune.reduce("cdpruner", VIDEO, 0.3, text=text, text_mask=mask)
        for other in (padded, jax.tree.map(lambda leaf, at=number: leaf[at], together)):
            np.testing.assert_array_equal(other.index, alone.index)
            np.testing.assert_array_equal(other.tokens, alone.tokens)
        few = jvidprune.reduce("cdpruner", VIDEO, 0.1, text=text[mask])
        for row, one in enumerate((alone, few)):
            kept = int(one.count)
            assert int(swept.count[number, row]) == kept
            np.testing.assert_array_equal(swept.index[number, row, :kept], one.index[:kept])


def test_what_stands_in_padding_rows_changes_nothing():
    spoilt = np.where(MASK[..., None], TEXT, np.nan)
    plain, other = (jvidprune.reduce("cdpruner", VIDEO, 0.3, text=text, text_mask=MASK) for text in (TEXT, spoilt))
    np.testing.assert_array_equal(plain.index, other.index)
    with pytest.raises(JvidpruneError, match=r"text hold \d+ NaN"):
        jvidprune.reduce("cdpruner", VIDEO, 0.3, text=np.where(np.arange(5)[:, None] == 4, np.nan, TEXT)[:, 3:])


def test_a_batch_has_one_question_a_video():
    videos = jax.tree.map(lambda leaf: np.stack([leaf, leaf[::-1] if leaf.ndim > 1 else leaf, leaf]), VIDEO)
    batch = jvidprune.reduce_batch("cdpruner", videos, 0.3, text=TEXT, text_mask=MASK)
    for number in range(3):
        video = jax.tree.map(lambda leaf, at=number: leaf[at], videos)
        alone = jvidprune.reduce("cdpruner", video, 0.3, text=TEXT[number][MASK[number]])
        kept = int(alone.count)
        assert int(batch.count[number]) == kept
        np.testing.assert_array_equal(batch.index[number, :kept], alone.index[:kept])


def test_the_question_replaces_the_one_that_the_video_carries():
    carries = VIDEO.with_text(TEXT[0], MASK[0])
    np.testing.assert_array_equal(
        jvidprune.reduce("cdpruner", carries, 0.3, text=TEXT[1]).index,
        jvidprune.reduce("cdpruner", VIDEO, 0.3, text=TEXT[1]).index,
    )
    np.testing.assert_array_equal(
        jvidprune.reduce("cdpruner", carries, 0.3).index,
        jvidprune.reduce("cdpruner", VIDEO, 0.3, text=TEXT[0][:3]).index,
    )


def test_a_method_that_knows_no_padding_is_given_none():
    reduced = jvidprune.reduce(CountsRows(), VIDEO, 0.5, text=TEXT, text_mask=MASK)
    assert reduced.index[:, 0].tolist() == [3, 5, 2]
    assert jvidprune.reduce(SToP(CountsRows()), VIDEO, 0.5, text=TEXT[0], text_mask=MASK[0]).index[0] == 3
    alike = jvidprune.reduce_batch(CountsRows(), jax.tree.map(lambda leaf: leaf[None], VIDEO), 0.5, text=TEXT[:1])
    assert alike.index[0, 0] == 5
    batch = jax.tree.map(lambda leaf: np.stack([leaf] * 3), VIDEO)
    with pytest.raises(JvidpruneError, match="CountsRows does not read text_mask: give it questions without padding"):
        jvidprune.reduce_batch(CountsRows(), batch, 0.5, text=TEXT, text_mask=MASK)


def test_combinators_hand_the_question_on():
    chain = Sequential("cdpruner(split=False)", "cdpruner(split=False)", ladder=(0.5,))
    assert (chain.reads_text_mask, SToP("cdpruner").reads_text_mask) == (True, True)
    assert not SToP(CountsRows()).reads_text_mask
    padded = jvidprune.reduce(chain, VIDEO, 0.25, text=TEXT[0], text_mask=MASK[0])
    np.testing.assert_array_equal(padded.index, jvidprune.reduce(chain, VIDEO, 0.25, text=TEXT[0][:3]).index)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {},
            "CDPruner needs the evidence text, .* text is the question: give it to encode, or its embeddings as text=",
        ),
        ({"text": TEXT[0, :, 1:]}, r"embeddings of a question must have shape \(L, "),
        ({"text": TEXT[0, 0]}, r"embeddings of a question must have shape \(L, "),
        ({"text": TEXT[:, :0]}, r"embeddings of a question must have shape \(L, "),
        ({"text": TEXT[0], "text_mask": MASK}, r"text_mask must have shape \(5,\)"),
        ({"text": TEXT, "text_mask": MASK[:2]}, "text has 3 questions, but text_mask has 2 rows"),
        ({"text": TEXT[0], "text_mask": MASK[0] & False}, "must leave every question at least one row"),
        ({"text_mask": MASK[0]}, "text_mask marks the rows of text=, which is missing"),
    ],
)
def test_what_is_no_question_is_refused(asked, message):
    with pytest.raises(JvidpruneError, match=message):
        jvidprune.reduce("cdpruner", VIDEO, 0.3, **asked)


def test_the_same_inside_jit():
    @jax.jit
    def kept(text, mask):
        return jvidprune.reduce("cdpruner", VIDEO, 0.3, text=text, text_mask=mask).index

    outside = jvidprune.reduce("cdpruner", VIDEO, 0.3, text=TEXT, text_mask=MASK)
    np.testing.assert_array_equal(kept(TEXT, MASK), outside.index)
    with pytest.raises(JvidpruneError, match="CountsRows does not read text_mask"):
        jax.jit(lambda mask: jvidprune.reduce(CountsRows(), VIDEO, 0.5, text=TEXT[0], text_mask=mask).index)(MASK[0])
