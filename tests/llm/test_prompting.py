"""How reduced tokens stand in a prompt: newlines a method declares, positions, vision markers, several videos."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import MODELS
from helpers.tiny import SPECIAL, tokenizer

from jvidprune import JvidpruneError, reducers
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, shared_blocks, shared_stages
from jvidprune.llm.prompts import llava, qwen
from jvidprune.llm.prompts.messages import asked
from jvidprune.llm.prompts.templates import chat_texts, template
from jvidprune.models.checkpoint.processor import channels, qwen_limits, square, video_processor
from jvidprune.models.positions import prompt_pieces
from jvidprune.models.qwen2_5_vl import Config as Config25
from jvidprune.models.qwen3_vl import Config as Config3
from jvidprune.models.tokenizer import load_tokenizer
from jvidprune.reducers.protocol import prompt_rules
from jvidprune.tokens import Reduced, VideoTokens
from jvidprune.video.decode import Clip
from jvidprune.video.preprocess import QWEN2_5_VL, QWEN3_VL

N, SIDE, ROOM = 16, 4, 24
PAD = 256 + SPECIAL.index("<|video_pad|>")


def reduced_video(reducer, kept, frames=3, inner=()):
    """What a reducer would have made of three frames of 4 x 4 tokens, with padding behind."""
    count = len(kept)
    index = np.full(ROOM, frames * N, np.int32)
    index[:count] = kept
    valid = np.arange(ROOM) < count
    reduced = Reduced(jnp.zeros((ROOM, 2)), *map(jnp.asarray, (index, valid, valid, np.zeros(frames * N))), {})
    clip = Clip.from_frames(np.zeros((2 * frames, 1, 1, 3), np.uint8), fps=2.0)
    return ReducedVideo(EncodedVideo(VideoTokens.create(np.zeros((frames, N, 2))), clip), reduced, reducer, 0.2, inner)


# Rows 0 and 2 of frame 0, nothing of frame 1, row 3 of frame 2.
KEPT = [1, 2, 8, 2 * N + 12, 2 * N + 15]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("flashvid", [0, 1, 2, -1, -1, 3, 4, -1]),
        ("flashvid:newline=grid", [0, 1, -1, -1, 2, -1, -1] + [-1] * 7 + [3, 4, -1]),
        ("visionzip:official_permutation=False", [0, 1, -1, -1, 2, -1, -1] + [-1] * 7 + [3, 4, -1]),
        ("attention_topk", [0, 1, -1, -1, 2, -1, -1] + [-1] * 7 + [3, 4, -1]),
        ("vidcom2", [0, 1, 2] + [-1] * 8 + [3, 4] + [-1] * 4),
        ("vidcom2:newline_rows=nonempty", [0, 1, -1, 2, -1, 3, 4, -1]),
        ("holitom", [0, 1, -1, 2, -1, 3, 4, -1]),
        ("fastvid", [0, 1, -1, 2, -1, 3, 4, -1]),
        ("ottvid", [0, 1, -1, 2, -1, 3, 4, -1]),
        ("prunevid", [0, 1, 2, 3, 4]),
        ("stop:base=flashvid", [0, 1, 2, 3, 4]),
        ("stop:base=holitom", [0, 1, -1, 2, -1, 3, 4, -1]),
        ("aot:row_newlines=True", [0, 1, 2, 3, 4]),
    ],
)
def test_newlines_on_llava_video_are_the_methods_own(name, rows):
    run = llava.newline_run(reduced_video(reducers.from_text(name, "llava_video"), KEPT), "grid", "all", 7)
    assert run.rows.tolist() == [row + 7 if row >= 0 else -1 for row in rows]
    assert run.length == 3 * N + {"flashvid": 3}.get(name, 0 if -1 not in rows else 12)


def test_rows_filed_under_other_places_stand_before_the_newlines_of_those():
    one = reduced_video(reducers.get("visionzip", "llava_video"), [3, 0, 9])
    one.reduced.diagnostics["place"] = np.array([0, 6, 9] + [3 * N] * (ROOM - 3))
    run = llava.newline_run(one, "grid", "all")
    assert run.rows.tolist() == [0, -1, 1, -1, 2, -1, -1] + [-1] * 8
    assert not prompt_rules(reducers.get("visionzip", "llava_onevision")).official_places


def test_only_flashvid_drops_markers_and_one_newline_stands_behind_an_onevision_video():
    for name in reducers.names():
        expected = ("no_token",) if name == "scissor" else (None, "one_token")
        assert prompt_rules(reducers.get(name, "llava_onevision")).newline in expected
        for backbone in ("qwen2_5_vl", "qwen3_vl"):
            drops = prompt_rules(reducers.get(name, backbone)).vision_markers == "drop"
            assert drops == ((name, backbone) == ("flashvid", "qwen3_vl"))


def lay_out(reducer, kept, **options):
    texts = [np.arange(5), np.arange(3)]
    return llava.lay_out([reduced_video(reducer, kept)], texts, **options, max_positions=200, reserve=4)


def test_fastvid_keeps_the_positions_of_the_whole_sequence_and_others_recount():
    options = {"newline": "grid", "newline_rows": "all"}
    slots = lay_out(reducers.get("fastvid", "llava_video"), KEPT, **options)
    # 5 words; rows of 4 tokens and a newline, 20 a frame; 3 words behind 65 slots.
    where = [0, 1, 2, 3, 4, 6, 7, 9, 15, 19, 60, 63, 64, 65, 66, 67]
    assert slots.positions[: slots.length].tolist() == where
    assert slots.rotary.shape == (1, 64)
    assert slots.next_position == 68
    slots = lay_out(reducers.get("holitom", "llava_video"), KEPT, **options)
    assert slots.positions is None
    assert slots.rotary[0, : slots.length].tolist() == list(range(16))


def test_slots_point_at_text_newline_and_the_rows_of_each_video():
    videos = [reduced_video(reducers.get("random"), [3, 5]), reduced_video(reducers.get("random"), [4, 40, 41])]
    texts = [np.arange(2), np.arange(1), np.arange(2)]
    options = {"newline": "one_token", "newline_rows": "all"}
    slots = llava.lay_out(videos, texts, **options, max_positions=200, reserve=4)
    newline = 5
    first, second = newline + 1, newline + 1 + ROOM
    expected = [0, 1, first, first + 1, newline, 2, second, second + 1, second + 2, newline, 3, 4]
    assert slots.source[: slots.length].tolist() == expected
    assert slots.visual == (2, 10)


CONFIGS = {"qwen2_5_vl": Config25, "qwen3_vl": Config3}


@pytest.fixture(scope="module", params=CONFIGS)
def config(request):
    raw = json.loads((MODELS / request.param / "config.json").read_text())
    ids = {"vision_start_token_id": 256 + SPECIAL.index("<|vision_start|>")}
    ids["vision_end_token_id"] = ids["vision_start_token_id"] + 1
    return CONFIGS[request.param].from_hf(raw | ids)


def encoded(text):
    return tokenizer().encode(text, add_special_tokens=False).ids


def qwen_prompt(config, videos, question="Which?"):
    texts = template(config.family).texts(question, len(videos))
    ids = [encoded(text) for text in qwen.video_texts(texts, videos, config)]
    return qwen.lay_out(videos, ids, config, reserve=4), np.concatenate(ids)


def whole_ids(config, videos, question="Which?"):
    """The processor's prompt of one string, every placeholder in its place."""
    before, *between, after = template(config.family).texts(question, len(videos))
    block, frames = "<|vision_start|>{}<|vision_end|>", videos[0].video.tokens.features.shape[0]
    shown = block.format("<|video_pad|>" * frames * N)
    if config.family == "qwen3_vl":
        stamps = ["<0.2 seconds>", "<1.2 seconds>", "<2.2 seconds>"]
        shown = "".join(text + block.format("<|video_pad|>" * N) for text in stamps)
    return np.array(encoded(before + "".join(shown + text for text in [*between, after])))


@pytest.mark.parametrize("name", ["random", "flashvid"])
@pytest.mark.parametrize("kept", [[KEPT], [KEPT, [0, 20, 21]], [[], list(range(10))]], ids=["one", "two", "none kept"])
def test_a_qwen_prompt_is_the_processors_with_places_left_out(config, name, kept):
    """Placeholders of the whole prompt and tokens fed are counted separately and agree."""
    videos = [reduced_video(reducers.get(name, config.family), part) for part in kept]
    slots, text = qwen_prompt(config, videos)
    ids = whole_ids(config, videos)
    visual, markers = ids == PAD, np.isin(ids, [config.vision_start, config.vision_end])
    blocks = [block for one in videos for block in config.blocks((3, 8, 8), 1.0)]
    where = config.positions(prompt_pieces(ids, PAD, blocks))
    chosen = np.concatenate([3 * N * number + np.array(part, int) for number, part in enumerate(kept)])
    stays = ~visual & ~(markers & (name == "flashvid") & (config.family == "qwen3_vl"))
    keep = np.sort(np.concatenate([np.flatnonzero(stays), np.flatnonzero(visual)[chosen]]))
    np.testing.assert_array_equal(slots.positions[:, : slots.length], where.ids[:, keep])
    assert slots.next_position == where.next
    fed = slots.source[: slots.length]
    assert (fed > len(text)).sum() == len(chosen) == visual[keep].sum()
    np.testing.assert_array_equal(text[fed[fed < len(text)]], ids[keep][~visual[keep]])
    rows = np.concatenate([ROOM * number + np.arange(len(part)) for number, part in enumerate(kept)])
    assert (fed[fed > len(text)] - len(text) - 1).tolist() == rows.tolist()


def test_prompts_of_transformers_5_keep_the_templates_markers_and_its_positions(config):
    """Qwen2.5-VL goes on at the larger side behind a video; Qwen3-VL has one more pair of markers around all of it."""
    one = reduced_video(reducers.get("random"), list(range(3 * N))[:ROOM])
    texts = template(config.family).texts("?")
    old, new = (qwen.video_texts(texts, [one], config, markers) for markers in ("blocks", "around"))
    if config.family == "qwen3_vl":
        assert new[0].startswith(texts[0] + "<|vision_start|><0.2 seconds>")
        assert new[1:-1] == old[1:-1]
        assert new[-1] == "<|vision_end|>" + old[-1]
        return
    assert new == old
    ids = [encoded(text) for text in new]
    slots = [qwen.lay_out([one], ids, config, reserve=1, rule=rule) for rule in ("released", "transformers-5")]
    behind = [int(one.positions[0, one.length - len(ids[1])]) - len(ids[0]) for one in slots]
    # Three grid frames, a second apart or without a clip a twelfth, on the time axis of the config; four rows.
    assert behind == [int(2 * config.tokens_per_second) + 1, 4]
    # Generated tokens follow the text.
    assert [one.next_position for one in slots] == [behind + len(ids[0]) + len(ids[1]) for behind in behind]


def test_videos_of_one_prompt_must_agree_on_what_happens_inside_the_model():
    fastv, plain = reducers.get("fastv"), reducers.get("random")
    cut = reduced_video(fastv, KEPT, inner=fastv.inner(0.5))
    assert shared_stages([cut, cut]) == fastv.inner(0.5)
    with pytest.raises(JvidpruneError, match=r"different stages inside the language model \(FastV, Random\)"):
        shared_stages([cut, reduced_video(plain, KEPT)])
    assert shared_stages([]) == ()


def test_blocks_of_several_videos_do_not_mix():
    parts = [reduced_video(reducers.get("prunevid"), [0, 1]) for _ in range(2)]
    for part, block in zip(parts, ([0, 2, -1], [1, 0, -1]), strict=True):
        part.reduced.diagnostics["block"] = np.array(block)
    assert shared_blocks(parts).tolist() == [0, 2, -1, 4, 3, -1]


# --- chat templates --------------------------------------------------------------------------------------------------

LLAVA_HF = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_VL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for content in message['content'] %}"
    "{% if content['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_MARK = "<|vision_start|><|video_pad|><|vision_end|>"


def put(folder, **files):
    for name, value in files.items():
        stem, _, suffix = name.rpartition("_")
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{stem}.{suffix}").write_text(text)
    return folder


def test_the_templates_of_checkpoints_are_those_of_the_published_prompts(tmp_path):
    one, two = asked("Why?"), asked("Why?", 2)
    folder = put(tmp_path, tokenizer_config_json={"chat_template": LLAVA_HF})
    assert chat_texts(folder, one, placeholder="<video>", between=" ") == template("llava_hf").texts("Why?")
    assert chat_texts(folder, two, placeholder="<video>", between=" ") == template("llava_hf").texts("Why?", 2)
    put(folder, chat_template_json={"chat_template": QWEN_VL})
    assert chat_texts(folder, two, placeholder=QWEN_MARK, between="") == template("qwen3_vl").texts("Why?", 2)
    put(folder, chat_template_jinja=PLAIN)
    expected = ["<|im_start|>user\n", " ", "\nWhy?<|im_end|>\n<|im_start|>assistant\n"]
    assert chat_texts(folder, two, placeholder="<video>", between=" ") == expected


def test_a_missing_or_useless_template_is_one_sentence(tmp_path):
    options = {"placeholder": "<video>", "between": " "}
    with pytest.raises(JvidpruneError, match="carries no chat template"):
        chat_texts(tmp_path, asked("?", 1), **options)
    put(tmp_path, chat_template_jinja="{% for")
    with pytest.raises(JvidpruneError, match="cannot be used"):
        chat_texts(tmp_path, asked("?", 1), **options)
    put(tmp_path, chat_template_jinja="nothing")
    with pytest.raises(JvidpruneError, match="leaves the videos out"):
        chat_texts(tmp_path, asked("?", 1), **options)
    with pytest.raises(JvidpruneError, match="must not contain <video>"):
        chat_texts(tmp_path, asked("What is <video>?", 1), **options)


def test_a_folder_with_tokenizer_json_alone_is_enough(tmp_path):
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    plain = load_tokenizer(tmp_path)
    assert plain.encode("<|im_start|>a") == [256 + SPECIAL.index("<|im_start|>"), *plain.encode("a")]
    assert plain.decode(plain.encode("Grüße")) == "Grüße"


# --- pixels of a folder ----------------------------------------------------------------------------------------------


def test_the_processor_file_is_the_one_transformers_reads(tmp_path):
    assert video_processor(tmp_path) == {}
    put(tmp_path, preprocessor_config_json={"a": 1})
    assert video_processor(tmp_path) == {"a": 1}
    put(tmp_path, video_preprocessor_config_json={"a": 2})
    assert video_processor(tmp_path) == {"a": 2}
    put(tmp_path, processor_config_json={"processor_class": "x"})
    assert video_processor(tmp_path) == {"a": 2}
    put(tmp_path, processor_config_json={"video_processor": {"a": 3}})
    assert video_processor(tmp_path) == {"a": 3}


def test_limits_of_a_folder_replace_the_published_ones():
    named = {"min_pixels": 784, "max_pixels": 50176, "size": {"shortest_edge": 1, "longest_edge": 2}}
    found = qwen_limits(named, QWEN2_5_VL)
    assert (found.min_pixels, found.max_pixels) == (784, 50176)
    # 8 x 8 blocks of 28 pixels are the most that fit; without the folder's limit the size stays.
    assert found.size(8, 448, 448) == (224, 224)
    assert QWEN2_5_VL.size(8, 448, 448) == (448, 448)
    found = qwen_limits({"size": {"shortest_edge": 4096, "longest_edge": 8 * 64 * 64}}, QWEN3_VL)
    assert found.size(8, 640, 640) == (64, 64)
    assert qwen_limits({}, QWEN3_VL) == QWEN3_VL


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"min_pixels": 10, "max_pixels": 5}, "10..5"),
        ({"max_pixels": "many"}, "many"),
        ({"patch_size": 16}, "patch_size 16, but the model was built for 14"),
        ({"image_mean": [0.5]}, "must hold three numbers"),
        ({"image_std": [0.5, 0.5, 0.0]}, "must hold three numbers"),
    ],
)
def test_limits_that_make_no_sense_are_refused(given, says):
    with pytest.raises(JvidpruneError, match=says):
        qwen_limits(given, QWEN2_5_VL)


def test_llava_folders_say_mean_deviation_and_side():
    assert channels({"image_mean": [0.1, 0.2, 0.3]})[0] == (0.1, 0.2, 0.3)
    assert square({"size": {"height": 384, "width": 384}}, 384) == square({}, 384) == 384
    with pytest.raises(JvidpruneError, match="the tower reads 384 pixels"):
        square({"size": {"height": 336, "width": 336}}, 384)


def test_golden_checkpoints_have_no_processor_files_and_take_the_published_settings():
    for family in CONFIGS:
        assert video_processor(MODELS / family) == {}
