"""Everything before the model against the processors themselves: qwen-vl-utils, transformers, torchvision, Pillow.

Not in the default run; no weights are fetched. In an environment of its own, PyTorch first, for a CPU build:

    pip install torch==2.13.0 requests && pip install --no-deps torchvision==0.28.0 qwen-vl-utils==0.0.14
    pip install -e '.[test]' && python -m pytest -m torch_reference

Written for transformers 5.24; with 4.57 the tests of positions take its rule, and those of prompts its markers.
"""

import dataclasses
import functools
import inspect

import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny
from helpers.tiny import PAD, SPECIAL, tokenizer, write_checkpoint
from helpers.torch_processors import film, modules, tensor

from jvidprune import reducers
from jvidprune.llm.conventions import CONVENTIONS, settings_of
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import family as families
from jvidprune.models.positions import prompt_pieces, prompt_positions
from jvidprune.tokens import VideoTokens
from jvidprune.video import resize
from jvidprune.video.decode import Clip
from jvidprune.video.sampling import reference_indices

pytestmark = pytest.mark.torch_reference

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' and SYSTEM %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the published chat templates of the Qwen-VL families write for a turn with a video; Qwen2.5-VL adds a system
turn."""

LMMS = {"min_pixels": 256 * 28 * 28, "max_pixels": 1605632}
"""What lmms-eval's model classes for Qwen ask of qwen-vl-utils."""

SIZES = [(60, 90), (97, 131), (240, 320), (720, 1280)]
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def fetched(frames, patch, monkeypatch, **wish):
    """What `fetch_video` of qwen-vl-utils gives for a file with these frames at 10 a second."""
    torch, _, utils = modules()

    def read(element):
        total = len(frames)
        count = utils.smart_nframes(element, total_frames=total, video_fps=10.0)
        index = torch.linspace(0, total - 1, count).round().long()
        metadata = {"fps": 10.0, "frames_indices": index.tolist(), "total_num_frames": total}
        return tensor(frames)[index], metadata, count / total * 10.0

    monkeypatch.setattr(utils, "get_video_reader_backend", lambda: "torchvision")
    monkeypatch.setitem(utils.VIDEO_READER_BACKENDS, "torchvision", read)
    found = utils.fetch_video({"video": "film.mp4", **wish}, image_patch_size=patch, return_video_metadata=True)
    return found if isinstance(found, tuple) and isinstance(found[1], dict) else found[0]


@functools.cache
def processor(family, patch, limits=None):
    """The whole processor of a family, for a tower with patches of this side."""
    modules()
    import transformers

    video, whole = {
        "qwen2_5_vl": (transformers.Qwen2VLVideoProcessor, transformers.Qwen2_5_VLProcessor),
        "qwen3_vl": (transformers.Qwen3VLVideoProcessor, transformers.Qwen3VLProcessor),
    }[family]
    published = {"qwen2_5_vl": (3136, 12_845_056), "qwen3_vl": (4096, 25_165_824)}[family]
    low, high = limits or published
    made = video(size={"shortest_edge": low, "longest_edge": high}, patch_size=patch)
    old = transformers.__version__.startswith("4.")
    kind = transformers.Qwen2TokenizerFast if old else transformers.PreTrainedTokenizerFast
    texts = kind(tokenizer_object=tokenizer(), pad_token="<|endoftext|>")
    template = TEMPLATE.replace("SYSTEM", "true" if family == "qwen2_5_vl" else "false")
    return whole(transformers.Qwen2VLImageProcessor(), texts, made, chat_template=template)


def read_by_reference(family, convention, frames, patch, wish, monkeypatch):
    """The processor's outputs for a question about a file with these frames at 10 a second."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}]
    extra, limits = {"do_sample_frames": False}, None
    if convention == "transformers":
        made = processor(family, patch)
        videos, count = tensor(frames), wish["nframes"]
        extra = {"do_sample_frames": True, "num_frames": count}
        if family == "qwen3_vl":
            # Its default rate and a number of frames would contradict each other.
            extra["fps"] = None
        metadata = {"fps": 10.0, "total_num_frames": len(frames), "duration": len(frames) / 10, "frames_indices": None}
    else:
        if convention == "lmms-eval":
            wish, limits = wish | LMMS, (LMMS["min_pixels"], LMMS["max_pixels"])
            if family == "qwen3_vl":
                messages.insert(0, {"role": "system", "content": "You are a helpful assistant."})
        made = processor(family, patch, limits)
        videos, metadata = fetched(frames, patch, monkeypatch, **wish)
        if family == "qwen3_vl":
            extra["do_resize"] = False
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return made(text=[text], videos=[videos], video_metadata=[metadata], return_tensors="pt", **extra)


@functools.cache
def checkpoint(family):
    import tempfile
    from pathlib import Path

    return tiny.write(family, Path(tempfile.mkdtemp()) / family)


def sampled(llm, frames, wish):
    """The clip that a model reads of a file with these frames at 10 a second."""
    index = llm.settings.wish(wish["nframes"]).indices(len(frames), 10.0)
    return Clip(frames[index], index, index / 10, 10.0, len(frames))


def prompt(llm, clip, grid):
    """(ids of the whole prompt with placeholders, its positions, the first generated token's)."""
    config = llm.loaded.config
    steps, rows, columns = grid[0], grid[1] // 2, grid[2] // 2
    video = VideoTokens.create(np.zeros((steps, rows * columns, 1), np.float32), grid=(rows, columns))
    one = llm.reduce(EncodedVideo(video, clip), reducer=reducers.get("none"), ratio=1.0)
    slots, text = llm.lay_out([one], "What?", 1)
    source = slots.source[: slots.length]
    ids = np.where(source < len(text), text[np.minimum(source, len(text) - 1)], config.video_token)
    return ids, slots.positions[:, : slots.length], slots.next_position


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_qwen_videos_are_read_as_by_the_processors(family, convention, size, kind, monkeypatch):
    """Sampled frames, grid and patches; at the published sides of patches."""
    frames = film(9, size, kind)
    wish = {"nframes": 7 if family == "qwen3_vl" and convention == "transformers" else 6}
    patch = 14 if family == "qwen2_5_vl" else 16
    expected = read_by_reference(family, convention, frames, patch, wish, monkeypatch)
    settings = settings_of(family, convention)
    index = settings.wish(wish["nframes"]).indices(len(frames), 10.0)
    found = settings.pixels(published_config(family), {})(frames[index])
    assert list(found.grid) == expected["video_grid_thw"][0].tolist()
    # Bytes are equal: what is left is the float32 noise of normalising, 2e-6 of a level's 4e-3 to 8e-3.
    np.testing.assert_allclose(found.values, expected["pixel_values_videos"].numpy(), rtol=0, atol=2e-6)


def published_config(family):
    from jvidprune.models.checkpoint.published import published

    return published({"qwen2_5_vl": "qwen2.5-vl-7b", "qwen3_vl": "qwen3-vl-8b"}[family])


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_those_of_the_processors(family, convention, monkeypatch):
    """Texts, stamps, markers and placeholders, token by token."""
    import transformers

    frames, patch = film(9, (60, 90), "noise"), 4
    # The limits of lmms-eval are pixels, not blocks: many tokens with patches of this side.
    wish = {"nframes": 2 if convention == "lmms-eval" else 6}
    expected = read_by_reference(family, convention, frames, patch, wish, monkeypatch)
    llm = VideoLLM.load(checkpoint(family), convention=convention)
    if convention != "transformers" or transformers.__version__.startswith("4."):
        markers = "around" if not transformers.__version__.startswith("4.") else "blocks"
        # Markers are the library's: released and lmms-eval are those of 4.57, the format of training.
        llm = dataclasses.replace(llm, settings=dataclasses.replace(llm.settings, markers=markers))
    clip = sampled(llm, frames, wish)
    ids, _, _ = prompt(llm, clip, expected["video_grid_thw"][0].tolist())
    assert ids.tolist() == expected["input_ids"][0].tolist()


SECONDS = (1.0, 0.75, 2.5, 20 / 7, 5 / 3)


@functools.cache
def golden_model(folder):
    modules()
    import transformers

    made = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, attn_implementation="eager")
    return made.eval()


@pytest.fixture(scope="module")
def golden_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen2_5_vl")


@pytest.mark.parametrize("seconds", SECONDS)
def test_positions_of_qwen2_5_vl_are_those_of_the_library(golden_folder, seconds):
    """Of the whole prompt, and of the tokens that `generate()` makes."""
    torch = modules()[0]
    import transformers

    model = golden_model(golden_folder)
    old = transformers.__version__.startswith("4.")
    rule = "transformers-4.57" if old else "transformers-5"
    config = VideoLLM.load(golden_folder).loaded.config
    steps, rows, columns = 6, 2, 3
    start, end = (256 + SPECIAL.index(f"<|vision_{side}|>") for side in ("start", "end"))
    ids = np.array([[65, 66, start, *[PAD] * (steps * rows * columns), end, 67, 68, 69]])
    for settings in (model.config, model.model.config):
        settings.video_token_id, settings.vision_start_token_id = PAD, start
    grid = torch.tensor([[steps, 2 * rows, 2 * columns]])
    words = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.ones(ids.shape, dtype=torch.long),
        "video_grid_thw": grid,
        "second_per_grid_ts": torch.tensor([seconds]),
        "pixel_values_videos": torch.zeros(int(grid.prod()), 3 * 2 * config.vision.patch_size**2),
    }
    if not old:
        words["mm_token_type_ids"] = 2 * (words["input_ids"] == PAD).int()
    seen = []
    language = model.model.language_model
    forward = language.forward

    @functools.wraps(forward)
    def recorded(*args, **kwargs):
        bound = inspect.signature(forward).bind_partial(*args, **kwargs).arguments
        seen.append(np.asarray(bound["position_ids"])[-3:, 0])
        return forward(*args, **kwargs)

    language.forward = recorded
    try:
        model.generate(**words, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    finally:
        language.forward = forward
    taken = float(int(seconds)) if old else seconds
    pieces = prompt_pieces(ids[0], PAD, config.blocks((steps, 2 * rows, 2 * columns), taken))
    found = prompt_positions(pieces, tokens_per_second=config.tokens_per_second, rule=rule)
    np.testing.assert_array_equal(found.ids, seen[0])
    assert [one[:, -1].tolist() for one in seen[1:]] == [[found.next + step] * 3 for step in range(len(seen) - 1)]


@pytest.mark.parametrize(("total", "count"), [(300, 32), (57, 32), (33, 32), (64, 64), (1000, 7), (9, 9), (2, 2)])
def test_frames_are_those_of_the_processors(total, count, monkeypatch):
    torch, _, utils = modules()
    import transformers
    from transformers.video_utils import VideoMetadata

    metadata = VideoMetadata(total_num_frames=total, fps=10.0, duration=total / 10)
    processors = {
        "hf_default": transformers.LlavaOnevisionVideoProcessor(),
        "hf_qwen2": transformers.Qwen2VLVideoProcessor(),
        "hf_qwen3": transformers.Qwen3VLVideoProcessor(),
    }
    if hasattr(transformers, "Molmo2VideoProcessor"):
        processors["hf_molmo2"] = transformers.Molmo2VideoProcessor()
    rules = {
        "hf_default": ("llava_onevision", "transformers"),
        "hf_qwen2": ("qwen2_5_vl", "transformers"),
        "hf_qwen3": ("qwen3_vl", "transformers"),
        "hf_molmo2": ("molmo2", "transformers"),
    }
    even = 2 * round(count / 2)
    for rule, made in processors.items():
        assert settings_of(*rules[rule]).rule == rule
        if rule == "hf_qwen2" and even > total:
            continue
        expected = np.asarray(made.sample_frames(metadata, num_frames=count))
        assert settings_of(*rules[rule]).wish(count).indices(total, 10.0).tolist() == [
            index for index in expected.tolist() if index < total
        ]
    if even <= total:
        expected = torch.linspace(0, total - 1, even).round().long().tolist()
        assert utils.smart_nframes({"nframes": count}, total, 10.0) == even
        for family in FAMILIES:
            assert settings_of(family).wish(count).indices(total, 10.0).tolist() == expected
    expected = np.linspace(0, total - 1, count, dtype=int).tolist()
    assert reference_indices(total, 10.0, "llava_video_force", count, None).tolist() == expected
    assert settings_of("llava_video").wish(count).indices(total, 10.0).tolist() == expected


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("size", SIZES)
def test_squared_frames_are_those_of_the_processors(size, kind):
    """LLaVA-OneVision and Molmo2 through transformers, the SigLIP processor of LLaVA-NeXT through Pillow."""
    modules()
    import PIL
    import transformers
    from PIL import Image

    frames = film(2, size, kind)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    video = transformers.LlavaOnevisionVideoProcessor(size={"height": 384, "width": 384}, **half)
    expected = video(videos=[tensor(frames)], return_tensors="pt")["pixel_values_videos"][0].numpy()
    config = config_with(384)
    for convention in CONVENTIONS:
        found = settings_of("llava_onevision", convention).pixels(config, half)(frames)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    pillow = [np.asarray(Image.fromarray(frame).resize((384, 384), Image.Resampling.BICUBIC)) for frame in frames]
    for convention in ("released", "lmms-eval"):
        found = settings_of("llava_video", convention).pixels(config, {})(frames)
        levels = np.rint(found * 127.5 + 127.5).transpose(0, 2, 3, 1)
        # Pillow 13 takes the vertical pass first where that is cheaper, which moves levels of noise.
        assert (levels != pillow).mean() < (0.2 if int(PIL.__version__.split(".")[0]) > 12 else 1e-9)
    if hasattr(transformers, "Molmo2VideoProcessor"):
        steps = {"do_rescale": True, "do_normalize": True, "do_sample_frames": False}
        made = transformers.Molmo2VideoProcessor(size={"height": 42, "width": 42}, **steps)
        rows = made(videos=[tensor(frames)], return_tensors="pt")["pixel_values_videos"].numpy()
        found = settings_of("molmo2").pixels(config_with(42), half)(frames)
        # (frame, patch row, patch column, row, column, channel).
        cut = found.reshape(2, 3, 3, 14, 3, 14).transpose(0, 2, 4, 3, 5, 1).reshape(rows.shape)
        assert (np.rint(cut * 127.5) != np.rint(rows * 127.5)).mean() < 1e-3


def config_with(side):
    from types import SimpleNamespace

    return SimpleNamespace(vision=SimpleNamespace(image_size=side))


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((720, 1280), (560, 1008)),
        ((1080, 1920), (560, 1008)),
        ((360, 640), (448, 784)),
        ((97, 131), (56, 84)),
        ((61, 45), (112, 84)),
        ((5, 7), (28, 56)),
        ((100, 84), (56, 84)),
    ],
)
def test_resized_bytes_are_those_of_torchvision(size, target, kind):
    """At most 0.04 % of the bytes differ from qwen-vl-utils, and none where torch was compiled for AVX2."""
    _, torchvision, _ = modules()
    from torchvision.transforms import functional
    from torchvision.transforms.v2 import functional as functional2

    frames = film(2, size, kind)
    words = {"interpolation": torchvision.transforms.InterpolationMode.BICUBIC, "antialias": True}
    floats = functional.resize(tensor(frames), list(target), **words).numpy()
    found = resize.resize_frames(frames, target, filter="torchvision_float")
    assert (found != floats).mean() <= 4e-4
    assert np.abs(found.astype(int) - floats).max() <= 1
    bytewise = functional2.resize(tensor(frames), list(target), **words).numpy()
    np.testing.assert_array_equal(resize.resize_frames(frames, target), bytewise)


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("size", [*SIZES, (28, 28)])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_read_as_by_the_processors(family, convention, size, kind):
    """Grid and patches of a still picture; at the published sides of patches and limits."""
    _, _, utils = modules()
    import transformers
    from PIL import Image

    config = tiny_config(family)
    patch = config.vision.patch_size
    low, high = {"qwen2_5_vl": (3136, 12_845_056), "qwen3_vl": (65_536, 16_777_216)}[family]
    shown = film(1, size, kind)
    image, extra = Image.fromarray(shown[0]), {}
    if convention != "transformers":
        wish = LMMS if convention == "lmms-eval" else {}
        image = utils.fetch_image({"image": image, **wish}, image_patch_size=patch)
        low, high = (LMMS["min_pixels"], LMMS["max_pixels"]) if wish else (low, high)
        extra = {"do_resize": False} if family == "qwen3_vl" else {}
    own = {} if family == "qwen2_5_vl" else {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    limits = {"shortest_edge": low, "longest_edge": high}
    made = transformers.Qwen2VLImageProcessor(size=limits, patch_size=patch, **own)
    expected = made(images=[image], return_tensors="pt", **extra)
    settings = settings_of(family, convention)
    found = settings.picture_pixels(config, {})(shown)
    assert tuple(expected["image_grid_thw"][0].tolist()) == found.grid
    assert settings.picture_shape(config, *size, {}).layouts[0].grid == (found.grid[1] // 2, found.grid[2] // 2)
    np.testing.assert_allclose(found.values, expected["pixel_values"].numpy(), atol=1e-5)


def tiny_config(family):
    """A tiny config with the published side of patches."""
    config = families.get(family).config.from_hf(tiny.CONFIGS[family])
    patch = 14 if family == "qwen2_5_vl" else 16
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, patch_size=patch))
