"""Pictures cut into tiles: what the reference makes of them, what reducers see, how many programs there are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_checkpoints
from helpers.families import script
from helpers.places import TESTS
from PIL import Image

from jvidprune import JvidpruneError, VideoLLM
from jvidprune.cli.console import Console
from jvidprune.cli.options import ModelChoice
from jvidprune.cli.reduce import ReduceChoice, draw_reduction
from jvidprune.costs.fits import check_question
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.opening import encode_tokens
from jvidprune.llm.prompts.messages import Message, Visual
from jvidprune.llm.rows import Prompt, batches, read_rows
from jvidprune.models.checkpoint.published import published
from jvidprune.models.llava_onevision import pictures as llava_pictures
from jvidprune.reducers import registry
from jvidprune.reducers.full import Full
from jvidprune.reducers.protocol import with_defaults
from jvidprune.tokens import VideoTokens
from jvidprune.video.decode import Clip
from jvidprune.video.tiles import SLOTS, anyres, internvl_grid, slots_of

MADE = script("tiles")
FAMILIES = tuple(MADE.CASES)


def shown(height, width, seed=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    root, known = tmp_path_factory.mktemp("tiles"), {}

    def load(family):
        if family not in known:
            known[family] = VideoLLM.load(tiny_checkpoints.write(family, root / family))
        return known[family]

    return load


# --- the references --------------------------------------------------------------------------------------------------


def compared(llm, family, pictures, golden):
    """Ids, tiles and logits of a prompt with pictures, ours beside the reference's."""
    clips = [Clip.of_picture(one) for one in pictures]
    videos = [llm.reduce(llm.encode(clip), reducer="none", ratio=1.0) for clip in clips]
    (rows,) = batches(llm, [Prompt(videos, "What?")], reserve=1, batch=1, min_fill=0.0)
    row = rows.used[0]
    source = row.slots.source[: row.slots.length]
    text = np.where(source < len(row.text), row.text[np.minimum(source, len(row.text) - 1)], -1)
    held = golden["input_ids"]
    assert len(text) == len(held)
    np.testing.assert_array_equal(text[text >= 0], held[text >= 0])
    # What is no text of ours is the placeholder there.
    assert len(set(held[text < 0].tolist())) == 1
    make, given = llm.settings.picture_pixels, MADE.PROCESSORS[family]
    tiles = [make(llm.picture_model.config, given)(clip.frames) for clip in clips]
    levels = MADE.levels(family, np.concatenate([one.values[: one.count] for one in tiles]))
    np.testing.assert_array_equal(levels.reshape(-1), golden["levels"].reshape(-1))
    with jax.default_matmul_precision("highest"):
        logits, _ = read_rows(llm, rows, 0)
    np.testing.assert_allclose(logits[0], golden["logits"], atol=2e-5)


@pytest.mark.parametrize("family", [FAMILIES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES[1:])])
def test_pictures_are_read_as_by_the_reference(tmp_path, family):
    golden = np.load(TESTS / "data" / f"tiles_{family}.npz")
    llm = VideoLLM.load(MADE.write(tmp_path / "m", family), dtype=jnp.float32, convention="transformers")
    compared(llm, family, MADE.pictures(family), golden)


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_a_picture_becomes_the_tiles_of_its_own_shape():
    limits = {"side": 448, "fewest": 1, "most": 12}
    assert internvl_grid(448, 448, **limits) == (1, 1)
    assert internvl_grid(450, 910, **limits) == (1, 2)
    # Equal shapes: more tiles once they have less than twice the picture's area.
    assert internvl_grid(448 * 2, 448 * 2, **limits) == (2, 2)
    assert internvl_grid(448 * 3, 448 * 3, **limits) == (3, 3)
    assert internvl_grid(1, 5000, **limits) == (1, 12)
    assert internvl_grid(100, 100, side=448, fewest=4, most=4) == (2, 2)


def test_llavas_plan_is_that_of_the_published_sizes():
    """By hand: 27 tokens on the side of a tile of 384 pixels."""
    known = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
    plan = {"side": 384, "tokens": 27, "sizes": known, "largest": 9}
    assert anyres(384, 384, **plan).grid == (27, 27)
    wide = anyres(480, 640, **plan)
    # 768 x 768 shows it whole, 640 x 480 grown to 768 x 576; int(480 * 54 / 640) = 40 rows of tokens.
    assert (wide.tiles, wide.resized, wide.rows, wide.grid) == ((2, 2), (576, 768), (7, 47), (40, 54))
    large = anyres(2304, 2304, **plan)
    # 162 x 162 tokens are four times those of nine tiles.
    assert (large.count, large.grid) == (37, (81, 81))
    with pytest.raises(JvidpruneError, match="a picture of 1 x 900 pixels is too narrow"):
        anyres(1, 900, side=8, tokens=4, sizes=((16, 8),), largest=9)


def test_few_sizes_hold_any_number_of_tiles():
    assert [slots_of(count) for count in (1, 2, 4, 7, 8, 13, 37, 38, 61)] == [1, 3, 5, 7, 10, 13, 37, 49, 61]
    assert all(count <= slots_of(count) <= max(1.5 * count, 3) for count in range(1, 200))


@pytest.mark.slow
def test_pictures_of_many_sizes_share_few_programs(loaded):
    """One program of the tower for each number of tiles that is filled up to, none for a picture's own."""
    for family in FAMILIES:
        llm = loaded(family)
        encode_tokens.clear_cache()
        counts = set()
        for height, width in ((40, 40), (30, 90), (90, 30), (70, 100), (64, 96), (96, 64), (33, 120)):
            video = llm.encode(Clip.of_picture(shown(height, width)))
            made = llm.settings.shape_of_picture(llm.loaded.config, (height, width), llm.processor, {})
            assert [one.layout.total for one in video.maps] == [one.total for one in made.layouts]
            counts.add(slots_of(made.frames))
        assert encode_tokens._cache_size() == len(counts) <= len(SLOTS)


@pytest.mark.slow
def test_pictures_whose_map_is_the_same_share_its_program(loaded):
    llm, settings = loaded("llava_onevision"), loaded("llava_onevision").settings
    sizes = [(100, side) for side in range(70, 76)]
    shapes = {settings.shape_of_picture(llm.loaded.config, size, llm.processor, {}) for size in sizes}
    llava_pictures._maps.clear_cache()
    for size in sizes:
        llm.encode(Clip.of_picture(shown(*size)))
    assert llava_pictures._maps._cache_size() == len(shapes) < len(sizes)


@pytest.mark.slow
def test_tiles_that_fill_up_change_nothing(loaded):
    """The kept tokens of a picture of 6 tiles among 7 are those of its tiles alone."""
    llm = loaded("internvl")
    video = llm.encode(Clip.of_picture(shown(30, 150)), needs=frozenset({"attention_last", "keys"}))
    tokens, real = video.tokens, video.layout.frames
    assert (real, tokens.features.shape[0]) == (6, 7)
    cut = {name: value[:real] for name, value in tokens.evidence.items()}
    alone = EncodedVideo(VideoTokens.create(tokens.features[:real], cut, grid=tokens.grid), video.source)
    for method in ("visionzip", "divprune", "random", "pool_space", "scissor", "tome"):
        one, other = (llm.reduce(each, reducer=method, ratio=0.3) for each in (video, alone))
        assert one.kept == other.kept
        np.testing.assert_array_equal(one.reduced.index[: one.kept], other.reduced.index[: one.kept])
        np.testing.assert_allclose(one.reduced.tokens[: one.kept], other.reduced.tokens[: one.kept], atol=1e-6)


# --- reducers --------------------------------------------------------------------------------------------------------

IN_TIME = {
    *("evs", "dycoke", "vcast", "flashvid", "fastvid", "holitom", "prunevid", "ottvid", "aot", "framefusion"),
    *("visionzip_qwen", "qwen_norm", "frame_drop", "fewer_frames"),
    *("pool_time", "pool_spacetime", "sample_time", "sample_spacetime"),
}
"""Methods that compare frames, or choose among them."""


def test_methods_of_time_are_these():
    known = (*registry.names(), *registry.framed())
    found = {name for name in known if with_defaults(registry.get(name, "internvl")).in_time}
    assert found == IN_TIME - {"qwen_norm"}
    assert with_defaults(registry.from_text("qwen_norm(method=fastvid)")).in_time
    assert with_defaults(registry.from_text("stop(base=flashvid)")).in_time
    assert with_defaults(registry.from_text("visionzip + flashvid")).in_time
    assert not with_defaults(registry.from_text("visionzip + divprune")).in_time
    assert with_defaults(registry.from_text("dstp(host=flashvid)")).in_time


def test_methods_of_time_refuse_tiles_before_anything_is_encoded(loaded, tmp_path):
    llm, clip = loaded("internvl"), Clip.of_picture(shown(70, 100))
    encode_tokens.clear_cache()
    for method in sorted(IN_TIME - {"qwen_norm", "visionzip_qwen"}):
        with pytest.raises(JvidpruneError, match=r"compares frames in time, but the 7 tiles of a picture"):
            llm.ask(clip, "What?", reducer=method, ratio=0.3)
        with pytest.raises(JvidpruneError, match=r"compares frames in time"):
            llm.encode(clip, reducer=method)
    assert encode_tokens._cache_size() == 0
    path = tmp_path / "one.png"
    Image.fromarray(shown(70, 100)).save(path)
    with pytest.raises(JvidpruneError, match="compares frames in time"):
        check_question(llm.loaded.folder, path, "?", reducer="flashvid", ratio=0.3, dtype="float32")
    assert check_question(llm.loaded.folder, path, "?", reducer="visionzip", ratio=0.3, dtype="float32").features > 0
    # One tile is a video of one frame.
    one = llm.encode(Clip.of_picture(shown(32, 32)))
    assert llm.reduce(one, reducer="flashvid", ratio=0.5).visual == 16


def test_methods_that_make_tokens_of_frames_refuse_pictures_of_several_maps(loaded, tmp_path):
    """Also where the picture is encoded already, and where only the plan is asked."""
    llm, clip = loaded("llava_onevision"), Clip.of_picture(shown(70, 100))
    tokens = VideoTokens.create(np.zeros((1, 16, tiny_checkpoints.WIDTH), np.float32))
    video = EncodedVideo(tokens, clip, beside=(EncodedVideo(tokens, clip),))
    path = tmp_path / "one.png"
    Image.fromarray(clip.frames[0]).save(path)
    says = "Fewer frames makes tokens of frames itself, which it cannot of the tiles of a picture"
    with pytest.raises(JvidpruneError, match=says):
        llm.reduce(video, reducer="fewer_frames", ratio=0.5)
    with pytest.raises(JvidpruneError, match=says):
        llm.ask(clip, "What?", reducer="fewer_frames", ratio=0.5)
    with pytest.raises(JvidpruneError, match=says):
        check_question(llm.loaded.folder, path, "?", reducer="fewer_frames", ratio=0.5, dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_methods_of_single_frames_keep_what_their_budgets_say(loaded, family):
    """On every map of a picture."""
    llm, clip = loaded(family), Clip.of_picture(shown(70, 100))
    maps = llm.encode(clip).maps
    for name in registry.names():
        method = llm.reducer(name)
        own = with_defaults(method)
        tiles = maps[0].layout.frames > 1
        if (tiles and own.in_time) or not method.needs <= llm.loaded.config.provides | {"text"}:
            continue
        # Those that act inside the language model keep all tokens here; Qwen's baselines read Qwen's towers.
        inside = isinstance(method, Full) or name in ("information_horizon", "dstp")
        if inside or name in ("dycoke", "stop", "qwen_norm", "visionzip_qwen", "aot"):
            continue
        video = llm.encode(clip, reducer=method, question="What?")
        one = llm.reduce(video, reducer=method, ratio=0.4)
        assert one.visual == video.total
        assert one.kept == sum(part.kept for part in one.maps)
        for part in one.maps:
            assert 0 < part.kept <= method.capacity(part.video.layout, 0.4) <= part.video.layout.total
            if own.info.exact:
                assert part.kept == own.expected(part.video.layout, 0.4)


@pytest.mark.parametrize("layers", [False, True])
def test_drawings_refuse_tiles_before_anything_is_encoded(loaded, tmp_path, layers):
    clip, path = Clip.of_picture(shown(70, 100)), tmp_path / "one.png"
    Image.fromarray(clip.frames[0]).save(path)
    for family in ("internvl", "llava_onevision"):
        model = ModelChoice(model=str(loaded(family).loaded.folder))
        choice = ReduceChoice(reducer="fastv(layer=1)", save=tmp_path / "out.png", layers=layers)
        encode_tokens.clear_cache()
        with pytest.raises(JvidpruneError, match=f"a picture that {family} cuts into tiles cannot be drawn"):
            draw_reduction(path, choice, model=model, console=Console(quiet=True))
        assert encode_tokens._cache_size() == 0
    assert not (tmp_path / "out.png").exists()


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_and_videos_stand_in_one_conversation(loaded, family):
    llm = loaded(family)
    film = Clip.from_frames(np.repeat(shown(48, 48)[None], 4, axis=0), fps=2.0)
    sources = [Clip.of_picture(shown(70, 100)), film, Clip.of_picture(shown(40, 90, 4))]
    videos = [llm.reduce(llm.encode(one), reducer="uniform", ratio=0.5) for one in sources]
    talk = (Message("user", (Visual.HERE, "A picture. ", Visual.HERE, "A film. ", Visual.HERE, "Which?")),)
    slots, text = llm.lay_out(videos, talk, 1)
    said = llm.tokenizer.decode(text)
    assert said.index("A picture.") < said.index("A film.") < said.index("Which?")
    assert ("Frame1: " in said[said.index("A picture.") : said.index("A film.")]) == (family == "internvl")
    held = slots.source[: slots.length] - len(text) - 1
    assert (held >= 0).sum() == sum(one.kept for one in videos)
    answer = llm.ask(videos, "Which?", max_new_tokens=2)
    assert (answer.kept, answer.visual) == (sum(one.kept for one in videos), sum(one.visual for one in videos))


NUMBERED = (
    "{% set seen = namespace(n=0) %}{% for m in messages %}{% if m['content'] is not string %}"
    "{% for part in m['content'] if part['type'] == 'image' %}{% set seen.n = seen.n + 1 %}"
    "Image {{ seen.n }}<|image|>{% endfor %}{% for part in m['content'] if part['type'] == 'video' %}<|video|>"
    "{% endfor %}{% endif %}{% endfor %}{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def test_a_chat_template_is_told_pictures_from_videos(tmp_path):
    """One that numbers pictures and puts them first."""
    folder = tiny_checkpoints.write("molmo2", tmp_path / "m")
    (folder / "chat_template.jinja").write_text(NUMBERED)
    llm = VideoLLM.load(folder)
    film = Clip.from_frames(np.repeat(shown(48, 48)[None], 2, axis=0), fps=2.0)
    tokens = VideoTokens.create(np.zeros((2, 16, tiny_checkpoints.WIDTH), np.float32))
    still, moving = (EncodedVideo(tokens, clip) for clip in (Clip.of_picture(shown(8, 8)), film))
    reduced = [llm.reduce(one, reducer="none", ratio=1.0) for one in (still, still, moving)]
    texts = llm.prompts.texts_around("What?", reduced)
    assert [text.removeprefix("<|endoftext|>") for text in texts] == ["Image 1", "Image 2", "", "What?"]
    # In another order than the template's own they go in as text.
    texts = llm.prompts.texts_around("What?", reduced[::-1])
    assert [text.removeprefix("<|endoftext|>") for text in texts] == ["", " ", " ", "What?"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_about_a_picture_reuses_the_cache(loaded, family):
    llm, clip = loaded(family), Clip.of_picture(shown(70, 100))
    told = []
    for reuse in (True, False):
        chat = llm.chat(clip, reducer="visionzip", ratio=0.3, reuse=reuse)
        told.append([chat.ask(question, max_new_tokens=3).token_ids for question in ("What?", "And then?")])
    assert told[0] == told[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_cuts_inside_the_language_model_act_on_pictures(loaded, family):
    llm, clip = loaded(family), Clip.of_picture(shown(70, 100))
    video = llm.encode(clip)
    for method in ("fastv(layer=1)", "dart(layer=1)"):
        one = llm.reduce(video, reducer=method, ratio=0.5)
        assert one.kept == video.total
        assert len(llm.ask(one, "What?", max_new_tokens=2).token_ids) <= 2


# --- files -----------------------------------------------------------------------------------------------------------


def written(folder):
    """Pictures of every mode with what the processor makes of them (Pillow's own conversion, upright)."""
    rng = np.random.default_rng(0)
    plain = Image.fromarray(shown(40, 60))
    turned = plain.getexif()
    turned[0x0112] = 6
    plain.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(rng.integers(0, 1 << 16, (40, 60)).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (40, 60, 4), np.uint8), "RGBA").save(folder / "alpha.png")
    Image.fromarray(rng.integers(0, 256, (40, 60, 4), np.uint8), "CMYK").save(folder / "print.jpg")
    plain.convert("P").save(folder / "palette.png")
    return sorted(folder.iterdir())


def test_pictures_of_every_mode_are_read_as_pillow_converts_them(loaded, tmp_path):
    from PIL import ImageOps

    llm = loaded("internvl")
    for path in written(tmp_path):
        with Image.open(path) as image:
            upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        clip = llm.sample(path)
        assert clip.picture
        np.testing.assert_array_equal(clip.frames[0], upright, err_msg=path.name)
    assert llm.sample(tmp_path / "turned.jpg").frames.shape == (1, 60, 40, 3)


def test_wrong_pictures_are_one_sentence(loaded, tmp_path):
    llm = loaded("internvl")
    Image.fromarray(shown(40, 60)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JvidpruneError, match=r"cut\.png is cut off"):
        llm.encode(tmp_path / "cut.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "huge.png")
    with pytest.raises(JvidpruneError, match=r"huge\.png has frames of 9000 x 9000 pixels, more than the 67108864"):
        llm.encode(tmp_path / "huge.png")
    # A strip of one pixel is what its tiles show of it.
    Image.fromarray(shown(1, 300)).save(tmp_path / "strip.png")
    assert llm.encode(tmp_path / "strip.png").layout.frames == 13
    with pytest.raises(JvidpruneError, match="narrow"):
        loaded("llava_onevision").encode(Clip.of_picture(shown(1, 2000)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"min_patches": 5, "max_patches": 4}, r"cuts pictures into 5\.\.4 tiles"),
        ({"max_patches": "many"}, r"cuts pictures into 1\.\.many tiles"),
        ({"size": {"height": 384, "width": 384}}, "the tower reads 448"),
        ({"do_resize": False}, "do_resize false"),
    ],
)
def test_settings_of_internvls_processor_that_make_no_sense_are_refused(loaded, given, says):
    settings = loaded("internvl").settings
    with pytest.raises(JvidpruneError, match=says):
        settings.picture_pixels(published("internvl3_5-8b"), given)


@pytest.mark.parametrize(
    ("changed", "given", "says"),
    [
        ({"aspect": "pad"}, {}, "the config has pad"),
        ({"newline": "no_token"}, {}, "spatial_unpad"),
        ({}, {"image_grid_pinpoints": [[100, 384]]}, "no heights and widths in tiles of 384 pixels"),
        ({"pinpoints": "(1x1)"}, {}, "no heights and widths"),
    ],
)
def test_configs_of_llava_that_read_pictures_otherwise_are_refused(loaded, changed, given, says):
    settings = loaded("llava_onevision").settings
    config = dataclasses.replace(published("llava-onevision-7b"), **changed)
    with pytest.raises(JvidpruneError, match=says):
        settings.picture_shape(config, 400, 400, given)


def test_llavas_sizes_are_written_in_two_ways(loaded):
    settings, config = loaded("llava_onevision").settings, published("llava-onevision-7b")
    listed = [[384 * rows, 384 * columns] for rows in range(1, 3) for columns in range(1, 3)]
    ways = ({"image_grid_pinpoints": listed}, {"image_grid_pinpoints": "(1x1),...,(2x2)"})
    one, other = (settings.picture_shape(config, 3000, 4000, given) for given in ways)
    assert one == other
    assert one.frames == 5
