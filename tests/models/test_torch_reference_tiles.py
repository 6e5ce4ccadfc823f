"""Tiled pictures, live against transformers' processors and models; see `test_torch_reference`."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.families import module_at, script
from helpers.places import REPOSITORY
from helpers.torch_processors import film, modules

from jvidprune import VideoLLM
from jvidprune.llm.conventions import settings_of
from jvidprune.models.checkpoint.published import published

pytestmark = pytest.mark.torch_reference


MADE = script("tiles")
TESTS = module_at(REPOSITORY / "tests" / "models" / "test_tiles.py")
SIZES = [(97, 131), (240, 320), (448, 448), (720, 1280), (1000, 333), (1, 700), (1500, 2100)]
OTHERS = ((13, 31), (29, 11), (40, 40), (7, 9))
"""Sizes of pictures for models of tiny tiles, at which Molmo2's bilinear filter has no rounding ties."""


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("size", SIZES)
def test_internvl_cuts_pictures_as_its_processor(size, kind):
    torch, *_ = modules()
    import transformers

    picture = film(1, size, kind)[0]
    made = transformers.GotOcr2ImageProcessor(
        size={"height": 448, "width": 448}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    expected = made(images=[image], crop_to_patches=True, return_tensors="pt")["pixel_values"].numpy()
    config, settings = published("internvl3_5-8b"), settings_of("internvl")
    found = settings.picture_pixels(config, {})(picture[None])
    assert found.count == len(expected) == settings.picture_shape(config, *size, {}).frames
    np.testing.assert_allclose(found.values[: found.count], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 1])
def test_llava_cuts_pictures_as_its_processor(size, kind):
    torch, *_ = modules()
    import transformers

    picture = film(1, size, kind)[0]
    made = transformers.LlavaOnevisionImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    expected = made(images=[image], return_tensors="pt")["pixel_values"][0].numpy()
    config, settings = published("llava-onevision-7b"), settings_of("llava_onevision", "transformers")
    found = settings.picture_pixels(config, {})(picture[None])
    shape = settings.picture_shape(config, *size, {})
    assert found.count == len(expected) == shape.frames
    np.testing.assert_allclose(found.values[: found.count], expected, rtol=0, atol=2e-6)
    texts = transformers.LlavaOnevisionProcessor
    counted = texts._get_number_of_features(_Counting(made), *size, 384, 384)
    assert counted == shape.total + shape.layouts[1].grid[0]


@pytest.mark.parametrize("kind", ["noise", "shapes"])
@pytest.mark.parametrize("size", SIZES)
def test_molmo2_cuts_pictures_as_its_processor(size, kind):
    """Overlapping crops, and which patches of which crop make a token."""
    torch, *_ = modules()
    import transformers

    picture = film(1, size, kind)[0]
    image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    expected = transformers.Molmo2ImageProcessor()(images=[image], return_tensors="pt")
    config, settings = published("molmo2-8b"), settings_of("molmo2")
    found = settings.picture_pixels(config, {})(picture[None])
    cut = expected["pixel_values"].numpy().reshape(-1, 27, 27, 14, 14, 3).transpose(0, 5, 1, 3, 2, 4)
    crops = cut.reshape(-1, 3, 378, 378)
    # A rounding tie of the filter is a level of 255.
    away = np.abs(found.values[: found.count] - crops)
    assert away.max() <= 2.1 / 255
    assert (away > 2e-6).mean() <= 0.005
    np.testing.assert_array_equal(found.plan.windows(), expected["image_token_pooling"].numpy())
    whole, map = settings.picture_shape(config, *size, {}).layouts
    assert [*whole.grid, *map.grid] == expected["image_grids"][0].tolist()


class _Counting:
    """What the processor's own count of tokens reads of it."""

    def __init__(self, image_processor):
        import transformers

        self.image_processor, self.num_image_tokens, self.vision_aspect_ratio = image_processor, 729, "anyres_max_9"
        own = transformers.LlavaOnevisionProcessor._get_unpadded_features
        self._get_unpadded_features = lambda *given: own(self, *given)


@pytest.mark.parametrize("size", OTHERS)
@pytest.mark.parametrize("family", tuple(MADE.CASES))
def test_prompts_and_logits_are_those_of_the_model(tmp_path, family, size):
    """On weights and pictures of other seeds and sizes than the golden files."""
    folder = MADE.write(tmp_path / "m", family, 11)
    pictures = [np.random.RandomState(12).randint(0, 256, (*size, 3)).astype(np.uint8)]
    texts = dict(MADE.TEXTS)
    first, *_, last = MADE.TEXTS[family]
    MADE.TEXTS[family] = (first, last)
    try:
        golden = MADE.run(folder, family, pictures)
    finally:
        MADE.TEXTS.update(texts)
    llm = VideoLLM.load(folder, dtype=jnp.float32, convention="transformers")
    TESTS.compared(llm, family, pictures, golden)
