"""VideoLLaMA3: frames, pixels and prompts against the processor of transformers; see `test_torch_reference`."""

import functools

import numpy as np
import pytest
from helpers import tiny_checkpoints as tiny
from helpers.tiny import tokenizer
from helpers.torch_processors import film, modules, tensor

from jvidprune import reducers
from jvidprune.llm.conventions import settings_of
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.checkpoint.published import published
from jvidprune.tokens import VideoTokens
from jvidprune.video.decode import Clip

pytestmark = pytest.mark.torch_reference

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|video_pad|>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def metadata(total):
    return {"fps": 10.0, "total_num_frames": total, "duration": total / 10, "frames_indices": None}


@functools.cache
def processor(patch, low, high):
    modules()
    import transformers

    video = transformers.VideoLlama3VideoProcessor(
        size={"shortest_edge": low, "longest_edge": high}, patch_size=patch, use_token_compression=False
    )
    texts = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="<|endoftext|>")
    image = transformers.VideoLlama3ImageProcessor()
    return transformers.VideoLlama3Processor(image, texts, video, chat_template=TEMPLATE)


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("limits", [(12544, 12_845_056), (100_352, 602_112)])
@pytest.mark.parametrize("size", [(60, 90), (97, 131), (240, 320), (720, 1280)])
def test_videos_are_read_as_by_the_processor(size, limits, kind):
    """Sampled frames, grid and patches, an odd number of frames."""
    frames = film(9, size, kind)
    words = {"do_sample_frames": True, "num_frames": 5, "video_metadata": [metadata(9)], "return_metadata": True}
    expected = processor(14, *limits).video_processor(videos=[tensor(frames)], return_tensors="pt", **words)
    settings = settings_of("video_llama_3")
    index = settings.wish(5).indices(9, 10.0)
    given = {"size": dict(zip(("shortest_edge", "longest_edge"), limits, strict=True))}
    found = settings.pixels(published("videollama3-7b"), given)(frames[index])
    assert list(found.grid) == expected["video_grid_thw"][0].tolist()
    np.testing.assert_allclose(found.values, expected["pixel_values_videos"].numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("total", [3, 4, 57, 300, 1000, 2500])
@pytest.mark.parametrize("wish", [{"num_frames": 7}, {"num_frames": 14}, {"fps": 1.0}, {"fps": 0.3}, {"fps": 9.0}])
def test_frames_are_those_of_the_processor(total, wish):
    modules()
    from transformers.video_utils import VideoMetadata

    made = processor(14, 12544, 12_845_056).video_processor
    if wish.get("num_frames", 0) > total:
        return
    meta = VideoMetadata(total_num_frames=total, fps=10.0, duration=total / 10)
    expected = [index for index in made.sample_frames(meta, **wish).tolist() if index < total]
    found = settings_of("video_llama_3").wish(wish.get("num_frames"), wish.get("fps")).indices(total, 10.0)
    assert found.tolist() == expected


def test_prompts_are_those_of_the_processor(tmp_path):
    """Texts, times, commas and placeholders, token by token."""
    frames, made = film(9, (60, 90), "noise"), processor(4, 1024, 65536)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}]
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    words = {"do_sample_frames": True, "num_frames": 4, "video_metadata": [metadata(9)]}
    expected = made(text=[text], videos=[tensor(frames)], return_tensors="pt", **words)
    folder = tiny.write("video_llama_3", tmp_path / "m")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    llm = VideoLLM.load(folder)
    index = llm.settings.wish(4).indices(9, 10.0)
    steps, rows, columns = expected["video_grid_thw"][0].tolist()
    shape = (rows // 2, columns // 2)
    tokens = VideoTokens.create(np.zeros((steps, shape[0] * shape[1], 1), np.float32), grid=shape)
    video = EncodedVideo(tokens, Clip(frames[index], index, index / 10, 10.0, 9))
    one = llm.reduce(video, reducer=reducers.get("none"), ratio=1.0)
    slots, text = llm.lay_out([one], "What?", 1)
    source = slots.source[: slots.length]
    ids = np.where(source < len(text), text[np.minimum(source, len(text) - 1)], llm.loaded.config.video_token)
    assert ids.tolist() == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("limits", [(3136, 1_003_520), (12_544, 100_352)])
@pytest.mark.parametrize("size", [(60, 90), (97, 131), (240, 320), (720, 1280)])
def test_pictures_are_read_as_by_the_processor(size, limits, kind):
    """Grid and patches of a still picture, each patch a token."""
    modules()
    import transformers
    from PIL import Image

    shown = film(1, size, kind)
    given = {"size": dict(zip(("shortest_edge", "longest_edge"), limits, strict=True))}
    made = transformers.VideoLlama3ImageProcessor(**given)
    expected = made(images=[Image.fromarray(shown[0])], return_tensors="pt")
    settings = settings_of("video_llama_3")
    config = settings.config_of_pictures(published("videollama3-7b"))
    found = settings.picture_pixels(config, given)(shown)
    assert list(found.grid) == expected["image_grid_thw"][0].tolist()
    assert settings.picture_shape(config, *size, given).layouts[0].grid == found.grid[1:]
    np.testing.assert_allclose(found.values, expected["pixel_values"].numpy(), rtol=0, atol=2e-6)
