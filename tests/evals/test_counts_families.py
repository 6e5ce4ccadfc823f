"""What a ratio really uses where a family writes newlines or markers into a video: numbers worked out by hand."""

import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny

from jvidprune.evals.counts import count_replies
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.prompts import slots
from jvidprune.llm.video_llm import VideoLLM

FRAMES, RATIO, QUESTION = 4, 0.25, "What?"
VISUAL = FRAMES * 16
ENTRY = 2 * 1 * 8 * 4
"""Bytes of key and value of a token in one layer: one head of 8 float32 numbers each."""

# Behind each of the four rows of a frame. Markers before and behind a frame; times such as "0.5 ", 4 bytes and as many
# tokens, with a space before all but the first.
AROUND = {"llava_video": (FRAMES * 4, 0), "molmo2": (0, FRAMES * 2 + FRAMES * 4 + FRAMES - 1)}

# FastV drops newlines of a frame like its visual tokens where they stand among these.
BEHIND = {"llava_video": (VISUAL + FRAMES * 4) // 4, "molmo2": VISUAL // 4}


@pytest.mark.parametrize("family", list(AROUND))
def test_newlines_and_markers_of_a_family_are_counted(family, tmp_path, monkeypatch):
    llm = VideoLLM.load(tiny.write(family, tmp_path / family))
    # All prompts share a program.
    monkeypatch.setattr(slots, "_BUCKETS", (512,))
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 32, 32, 3), dtype=np.uint8)
    video = llm.encode(noise, fps=2.0)
    methods = {name: llm.reducer(name) for name in ("none", "random", "fastv(layer=1)")}
    made = [llm.reduce(video, reducer=one, ratio=RATIO) for one in methods.values()]
    asked = [Prompt(reduced, QUESTION) for reduced in made]
    replies = answer_many(llm, asked, max_new_tokens=1, batch=1, count_cached=True)
    words = sum(len(part.encode()) for part in llm.prompts.texts(QUESTION)) - specials(llm)
    newlines, markers = AROUND[family]
    around, layers = newlines + markers, tiny.LAYERS
    found = {}
    for (name, method), reply in zip(methods.items(), replies, strict=True):
        counts = count_replies(llm, method, RATIO, [(QUESTION, reply)])
        assert (counts["newlines"], counts["markers"]) == (newlines, markers), name
        found[name] = (reply.kept, counts["layer_tokens"], counts["layer_all"], counts["kv_bytes"])
    text = words + markers
    kept, deep = VISUAL // 4, BEHIND[family]
    assert found == {
        "none": (VISUAL, VISUAL, VISUAL + around, ENTRY * layers * (text + VISUAL + newlines)),
        "random": (kept, kept, kept + around, ENTRY * layers * (text + kept + newlines)),
        "fastv(layer=1)": (
            VISUAL,
            (VISUAL + kept) / 2,
            (VISUAL + newlines + deep) / 2 + markers,
            ENTRY * (2 * text + VISUAL + newlines + deep),
        ),
    }


def specials(llm):
    """How many bytes of the template's special tokens are no tokens of their own."""
    texts = "".join(llm.prompts.texts(QUESTION))
    return sum((len(one) - 1) * texts.count(one) for one in tiny.SPECIAL)
