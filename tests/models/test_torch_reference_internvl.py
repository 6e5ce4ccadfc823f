"""InternVL: frames, pixels, prompts and the model against transformers; see `test_torch_reference`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import seeded
from helpers import tiny_checkpoints as tiny
from helpers.families import script
from helpers.tiny import SPECIAL, tokenizer
from helpers.torch_processors import film, modules, tensor

from jvidprune import reducers
from jvidprune.llm.conventions import settings_of
from jvidprune.llm.encoded import EncodedVideo
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models import load_model
from jvidprune.models.checkpoint.published import published
from jvidprune.tokens import VideoTokens
from jvidprune.video.decode import Clip

pytestmark = pytest.mark.torch_reference

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def metadata(total):
    return {"fps": 10.0, "total_num_frames": total, "duration": total / 10, "frames_indices": None}


@functools.cache
def processor(side):
    modules()
    import transformers

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size = {"height": side, "width": side}
    video = transformers.InternVLVideoProcessor(size=size, image_mean=mean, image_std=std)
    texts = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer((*SPECIAL, *MARKS.values())), pad_token="<|endoftext|>", extra_special_tokens=MARKS
    )
    image = transformers.GotOcr2ImageProcessor(size=size)
    return transformers.InternVLProcessor(image, texts, video, image_seq_length=16, chat_template=TEMPLATE)


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("size", [(60, 90), (97, 131), (240, 320), (720, 1280)])
def test_videos_are_read_as_by_the_processor(size, kind):
    """Sampled frames and pixels."""
    frames = film(9, size, kind)
    words = {"do_sample_frames": True, "num_frames": 5, "video_metadata": [metadata(9)]}
    expected = processor(448).video_processor(videos=[tensor(frames)], return_tensors="pt", **words)
    settings = settings_of("internvl")
    index = settings.wish(5).indices(9, 10.0)
    found = settings.pixels(published("internvl3_5-8b"), {})(frames[index])
    np.testing.assert_allclose(found, expected["pixel_values_videos"][0].numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("total", [3, 4, 57, 300, 1000, 2500, 99_999])
def test_frames_are_those_of_the_processor(total):
    modules()
    from transformers.video_utils import VideoMetadata

    made = processor(448).video_processor
    meta = VideoMetadata(total_num_frames=total, fps=10.0, duration=total / 10)
    wishes = [{"num_frames": number} for number in range(1, 70)] + [{"fps": fps} for fps in (0.3, 1.0, 2.0, 9.0)]
    for wish in wishes:
        if wish.get("num_frames", 0) > total or total / 10 * wish.get("fps", 10) < 1:
            continue
        expected = made.sample_frames(meta, **wish).tolist()
        found = settings_of("internvl").wish(wish.get("num_frames"), wish.get("fps")).indices(total, 10.0)
        # Which values of a float32 range round up is up to the vectors of the machine once they are this large.
        odd = np.asarray(found) != np.asarray(expected)
        assert odd.mean() <= (0.01 if total > 2**14 else 0.0), wish
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("videos", [1, 2])
def test_prompts_are_those_of_the_processor(tmp_path, videos):
    """Texts, numbers, markers and placeholders, token by token."""
    frames, made = film(9, (60, 90), "noise"), processor(32)
    messages = [{"role": "user", "content": [{"type": "video"}] * videos + [{"type": "text", "text": "What?"}]}]
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    words = {"do_sample_frames": True, "num_frames": 4, "video_metadata": [metadata(9)] * videos}
    expected = made(text=[text], videos=[tensor(frames)] * videos, return_tensors="pt", **words)
    folder = tiny.write("internvl", tmp_path / "m")
    tokenizer((*SPECIAL, *MARKS.values())).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    for own in (True, False):
        if not own:
            (folder / "chat_template.jinja").unlink()
        llm = VideoLLM.load(folder)
        index = llm.settings.wish(4).indices(9, 10.0)
        tokens = VideoTokens.create(np.zeros((4, 16, 1), np.float32), grid=(4, 4))
        video = EncodedVideo(tokens, Clip(frames[index], index, index / 10, 10.0, 9))
        one = llm.reduce(video, reducer=reducers.get("none"), ratio=1.0)
        slots, ids = llm.lay_out([one] * videos, "What?", 1)
        source = slots.source[: slots.length]
        visual = 256 + len(SPECIAL) + list(MARKS).index("context_image_token")
        found = np.where(source < len(ids), ids[np.minimum(source, len(ids) - 1)], visual)
        assert found.tolist() == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_model_is_that_of_transformers(tmp_path, name):
    """Live, on weights and pixels of another seed than the golden files."""
    modules()
    made = script("internvl")
    folder = seeded.write(tmp_path / "m", made.SETS[name][0], 101)
    expected = made.run(folder, 2, 102)
    from jvidprune.parity.models import compare_model_folder

    np.savez(folder / "io.npz", **expected)
    (report,) = compare_model_folder(folder)
    assert [row for row in report.rows if row.verdict != "ok"] == []
    with jax.default_matmul_precision("highest"):
        assert load_model(folder, dtype=jnp.float32).config.vision.rms == (name == "second")
