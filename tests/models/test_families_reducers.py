"""Every reducer on every family, from frames to generated tokens, with the exact count of tokens everywhere.

The clip is one still frame, so that every count follows from a method's definition: nothing moves, all frames are
alike. There are 6 (grid) frames of 4 x 4 tokens, 96 in all, and the ratio is 0.3 (0.1 for the methods whose ratio
is that of the cut inside the model).
"""

import dataclasses
import functools

import numpy as np
import pytest
from helpers import pruners
from helpers import tiny_checkpoints as tiny

from jvidprune import JvidpruneError, backbones, reducers
from jvidprune.llm import coverage, rows
from jvidprune.llm.prompts import slots as sequence
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.models.qwen import pixels as qwen_pixels
from jvidprune.reducers.protocol import inner_stages
from jvidprune.video.preprocess import qwen_patches

FRAMES, TOKENS, RATIO, CUT_RATIO = 6, 16, 0.3, 0.1
QUESTION = "What?"
NAMES = (*reducers.names(), "covipal")
"""What is tried; STTS needs a tower with a scorer (`tests/stts`)."""

FEW = ("none", "visionzip", "cdpruner", "fastv", "flashvid", "fastvid", "aot")
"""One of each kind of evidence and of cut, for families whose other methods run with the long tests."""

# Before the last layer of the checkpoints here; the published cuts lie behind their end.
CUT = {
    "inner_random": {"layer": 1},
    "fastv": {"layer": 1},
    "dart": {"layer": 1},
    "pyramiddrop": {"cut_layers": (1,), "shares": (0.1,)},
    "information_horizon": {"layer": 1, "numbers": (24, 5)},
    "sparsevlm": {"cut_layers": (1,), "numbers": (35,)},
    "framefusion": {"merge_calls": 1},
    "swiftvlm": {"cut_layers": (0, 1), "numbers": (30, 20), "groups": 3},
    "dstp": {"host": "fastv(layer=1)"},
    "mod": {"schedule": "interleave", "factor": 0.3, "depth": 2},
    "videollm_mod": {"share": 0.25, "depth": 2},
    "flashvid": {"pruning_layer": 1},
    # It has nothing to choose by without.
    "covipal": {"module": pruners.file(tiny.WIDTH)},
}

# Of four layers the second and the fourth have attention to read.
HYBRID_CUT = CUT | {
    "fastv": {"layer": 2},
    "dart": {"layer": 2},
    "sparsevlm": {"cut_layers": (2,), "numbers": (35,)},
    "swiftvlm": {"cut_layers": (1, 3), "numbers": (30, 20), "groups": 3},
    "flashvid": {"pruning_layer": 2},
}
REFUSED = {"qwen3_5": {"framefusion": "reads layer 0", "dstp": "renews its choice while decoding"}}

KEPT = {
    "none": 96,
    "visionzip": 24,  # int(16 * 0.3) = 4 a frame
    "divprune": 29,  # round(28.8)
    "scissor": 16,  # equal frames are one below tau = 1, which leaves fewer than round(28.8)
    "tome": 30,  # round(4.8) a frame
    "cdpruner": 30,  # floor(4.8 + 1 / 2) a frame
    "zspaprune": 29,  # round(28.8)
    "covipal": 29,  # round(28.8)
    "vcast": 29,  # round(28.8)
    "qwen_norm": 24,  # int(16 * 0.3) a frame
    "evs": 28,  # int(96 * (1 - (1 - 0.3))) in float64
    "vidcom2": 30,  # round(4.8) a frame where no frame is unusual
    "holov": 24,  # int(16 * 0.3) a frame
    "dycoke": 36,  # frames 0 and 4 whole, int((1 - 4 * 0.7 / 3) * 16) = 1 of the others
    "random": 29,  # floor(28.8 + 1 / 2)
    "uniform": 29,
    "frame_drop": 32,  # floor(1.8 + 1 / 2) frames
    "pool_space": 24,  # 2 x 2 of each frame, the largest grid of round(4.8) tokens
    "pool_time": 32,  # round(1.8) frames
    "pool_spacetime": 27,  # round(6 * 0.3 ** 0.5) = 3 frames, 3 x 3 of round(9.6) tokens
    "sample_space": 24,
    "sample_time": 32,
    "sample_spacetime": 27,
    "sample_random_cell": 24,
    "inner_random": 96,
    "fastv": 96,
    "dart": 96,
    "pyramiddrop": 96,
    "sparsevlm": 96,
    "information_horizon": 24,
    "framefusion": 96,
    "swiftvlm": 96,
    "dstp": 96,
    "mod": 96,
    "videollm_mod": 96,
    "attention_topk": 29,
    "norm_topk": 29,
    "flashvid": 36,  # ceil(16 * 0.3 * 1.25) a frame
    "fastvid": 24,  # int(16 * 0.3) a frame
    "holitom": 16,  # one window: all 16 places static, of which more than all may stay
    "prunevid": 16,  # the same
    "ottvid": 29,  # round(28.8), or round(6 * 7 * 0.3 ** 0.3) with 7 a frame before the transport
    "visionzip_qwen": 16,  # as holitom
}


def stop_kept(family):
    """SToP's base is its own wrapper of VisionZip on Qwen and VisionZip itself elsewhere."""
    return KEPT["visionzip_qwen" if family.startswith("qwen") else "visionzip"]


def aot_kept(video, reducer):
    """Without windows and clips: the V - V // 2 most attended tokens, or blocks of 2 x 2 with two of them or more."""
    attention = np.asarray(video.evidence["attention_deep"])
    visual = reducer.visual_tokens_for(video.layout(), RATIO)
    if reducer.pooling == "none":
        return FRAMES * (visual - visual // 2)
    anchors = np.zeros(attention.shape)
    most = np.argsort(-attention, axis=1, kind="stable")[:, : visual - visual // 2]
    np.put_along_axis(anchors, most, 1, axis=1)
    return int((anchors.reshape(FRAMES, 4, 2, 4, 2).sum(axis=(2, 4)) >= 2).sum())


# Visual tokens behind the cut, or in the routed layer: the share of what came in, newlines included where they compete.
BEHIND = {
    "inner_random": lambda n: round(n * CUT_RATIO),
    "fastv": lambda n: round(n * CUT_RATIO),
    "dart": lambda n: 4 + 8 * int(n * CUT_RATIO / 8),
    "pyramiddrop": lambda n: int(n * CUT_RATIO),
    "information_horizon": lambda n: 5,
    "sparsevlm": lambda n: 35 + (int(0.3 * (n - 35)) + 1) // 10 + 1,
    "framefusion": lambda n: n - int(n - n * 0.3),  # the most similar merge before the first layer, nothing later
    "swiftvlm": lambda n: 20,
    "dstp": lambda n: round(n * CUT_RATIO),
    "mod": lambda n: int(np.float32(n) * np.float32(0.3)),
    "videollm_mod": lambda n: FRAMES * round(n // FRAMES * 0.25),
    "flashvid": lambda n: int(np.ceil(n * 0.3)),
    "holitom": lambda n: round(n * 0.5),
}


def small_patches(config, given):
    """Qwen's pixels without the lower limit of 128 tokens a frame."""
    rules = dataclasses.replace(qwen_pixels._PIXELS[config.family], patch=config.vision.patch_size, min_pixels=64)
    return functools.partial(qwen_patches, family=rules)


def load(family, folder):
    llm = VideoLLM.load(tiny.write(family, folder / family, pooling_head=family.startswith("llava")))
    if llm.settings.grid is not None:
        llm = dataclasses.replace(llm, settings=dataclasses.replace(llm.settings, pixels=small_patches))
    return llm


def text_tokens(llm, one):
    return sum(map(len, llm.prompts.ids([one], QUESTION)))


def newline_tokens(family, name, one):
    """One behind the video, or on LLaVA-Video behind every row, or where the method's reference has them."""
    if name == "scissor":
        return 0
    if family != "llava_video":
        return int(family == "llava_onevision")
    index = np.asarray(one.reduced.index)[np.asarray(one.reduced.valid)]
    rows_with_a_token = len(np.unique(index // 4))
    on_grids = tuple(other for other in reducers.names() if other.startswith(("pool_", "sample_")))
    nonempty = dict.fromkeys(("holitom", "fastvid", "ottvid", *on_grids), rows_with_a_token)
    return ({"flashvid": FRAMES, "prunevid": 0} | nonempty).get(name, FRAMES * 4)


def trimmed(video, needs):
    """The evidence that a method asked for and what the decoder reads, as `encode` attaches it for one method.

    Families then share the compiled reducers, whose settings are often the same.
    """
    evidence = {k: v for k, v in video.evidence.items() if k in needs or k == "features_deepstack"}
    wide = video.unpooled_grid if "features_unpooled" in needs else None
    return dataclasses.replace(video, evidence=evidence, unpooled_grid=wide)


def method_on(family, name):
    settings = dict((HYBRID_CUT if family == "qwen3_5" else CUT).get(name, {}))
    if name == "holitom" and family.startswith("llava"):
        settings["inner_layer"] = 1
    return reducers.get(name, family, **settings)


def run_family(family, folder, read, monkeypatch, names):
    """(method, what, found, expected) of everything that is wrong on one family."""
    llm = load(family, folder)
    pair = getattr(llm.loaded.config.vision, "pair", 1)
    still = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8).repeat(FRAMES * pair, 0)
    methods = {name: method_on(family, name) for name in names}
    video = llm.encode(
        still, needs=frozenset().union(*(method.needs for method in methods.values())), question=QUESTION, fps=2.0
    )
    assert video.tokens.features.shape == (FRAMES, TOKENS, tiny.WIDTH)
    wrong = []

    def check(name, **pairs):
        wrong.extend((family, name, what, *pair) for what, pair in pairs.items() if pair[0] != pair[1])

    for name, method in methods.items():
        cell = coverage.cell(family, name)
        if says := REFUSED.get(family, {}).get(name):
            check(name, cell=(cell.startswith("no, "), True))
            with pytest.raises(JvidpruneError, match=says):
                llm.reduce(video, reducer=method, ratio=RATIO)
            continue
        expected = {"aot": lambda m: aot_kept(video.tokens, m), "stop": lambda m: stop_kept(family)}
        kept = expected[name](method) if name in expected else KEPT[name]
        shown = dataclasses.replace(video, tokens=trimmed(video.tokens, method.needs))
        ratio = CUT_RATIO if name in ("inner_random", "fastv", "dart", "dstp") else RATIO
        one = llm.reduce(shown, reducer=method, ratio=ratio)
        text, newlines = text_tokens(llm, one), newline_tokens(family, name, one)
        # One length for all prompts, one for all that is left behind cuts: a family's methods share their programs.
        monkeypatch.setattr(sequence, "_BUCKETS", (text + 15, text + FRAMES * (TOKENS + 6)))
        marked = name == "flashvid" and backbones.settings_of(family) == "qwen3_vl"
        if marked:
            text -= 2 * FRAMES  # vision markers
        answer = llm.ask(one, QUESTION, max_new_tokens=2)
        prompt = text + kept + newlines
        inside = bool(inner_stages(method, ratio))
        before = after = prompt
        if inside:
            competing = kept + newlines * (family == "llava_video" or name == "holitom")
            keep = (lambda n: int(np.ceil(n * 0.1))) if marked else BEHIND[name]
            after = prompt - competing + keep(competing)
            # FrameFusion's merge before the first layer; SwiftVLM's first cut, behind which three merged tokens go on.
            before = {"framefusion": after, "swiftvlm": prompt - competing + 33}.get(name, prompt)
        lengths = [before, after] if inside else [before]
        if family == "qwen3_5" and inside:
            # Layers in front of SwiftVLM's first cut, and behind the routed ones.
            lengths = [prompt] * (name == "swiftvlm") + lengths + [prompt] * name.endswith("mod")
        check(
            name,
            cell=(cell.startswith("yes"), True),
            inside=("in the LLM" in cell, inside),
            kept=(answer.kept, kept),
            visual=(answer.visual, FRAMES * TOKENS),
            prompt=(answer.prompt, prompt),
            cached=(read.pop(), lengths),
            generated=(answer.stages[-1].tokens in (1, 2), True),
        )
    return wrong


def test_every_method_and_family_has_a_row_here():
    assert KEPT.keys() | {"aot", "stop"} == set(NAMES)
    assert tiny.CONFIGS.keys() == set(families.names())


WHOLE = ("llava_onevision", "llava_video", "qwen2_5_vl", "qwen3_vl", "molmo2", "video_llama_3")
CELLS = [(family, NAMES if family in WHOLE else FEW) for family in families.names()]
CELLS += [pytest.param(family, NAMES, marks=pytest.mark.long) for family in families.names() if family not in WHOLE]


@pytest.mark.parametrize(("family", "names"), CELLS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.slow
def test_every_method_keeps_what_its_definition_says(family, names, tmp_path, monkeypatch):
    """Frames in, tokens out: kept tokens, prompt, cached tokens before and behind cuts, and the README's cells."""
    read, prefill = [], rows.prefill

    def spy(*args, **options):
        logits, cache = prefill(*args, **options)
        read.append([int(segment.valid.sum()) for segment in cache.segments])
        return logits, cache

    monkeypatch.setattr(rows, "prefill", spy)
    wrong = run_family(family, tmp_path, read, monkeypatch, names)
    assert not wrong, "\n".join(map(str, wrong))
