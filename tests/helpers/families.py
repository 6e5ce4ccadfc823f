"""What the tests of model families share: golden scripts, checkpoint folders made by them, exports, prompts as text."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
from helpers import seeded
from helpers import tiny_checkpoints as tiny
from helpers.places import REPOSITORY, TESTS
from safetensors.numpy import load_file

from jvidprune.llm.encoded import EncodedVideo
from jvidprune.models import load_model
from jvidprune.models.checkpoint.export import export_model
from jvidprune.parity.models import compare_model_folder
from jvidprune.reducers import registry
from jvidprune.stts import STTSConfig, encode, encoder_of, one_video
from jvidprune.tokens import VideoTokens
from jvidprune.video.preprocess import Patches


def script(name):
    """The script that made the golden files of a family; at import it needs numpy alone."""
    return module_at(REPOSITORY / "experiments" / f"golden_{name}.py")


def module_at(path):
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seeded_folders(root, family, configs, seeds):
    """Golden sets whose weights a seed makes, by name, as checkpoint folders with their io files."""
    found = {}
    for name, raw in configs.items():
        found[name] = seeded.write(root / name, raw, seeds[name])
        (found[name] / "io.npz").write_bytes((TESTS / "data" / f"{family}_{name}.npz").read_bytes())
    return found


def source(folder):
    """Tensors and config.json of a folder."""
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def all_agree(folder, inputs, shown=()):
    """Every array of a folder's io file but its inputs is compared, those of `shown` among them, and agrees."""
    (report,) = compare_model_folder(folder)
    rows = {row.what: row for row in report.rows}
    assert rows.keys() == set(np.load(folder / "io.npz").files) - inputs
    assert set(shown) <= rows.keys()
    assert [row for row in rows.values() if row.verdict != "ok"] == []


def exported_again(loaded, folder, target):
    """Tensors of `folder`, from which `loaded` came; its export at `target` is the same to the bit."""
    export_model(loaded, target)
    before, after = source(folder)[0], load_file(target / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    return before


def same_parameters(found, expected):
    """Two models' parameters by name are equal to the bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def prompt(llm, *clips, reducer="none", ratio=1.0):
    """The text of a prompt about videos of 2 x 2 tokens a frame, "*" for a visual token."""
    videos = []
    for clip in clips:
        tokens = VideoTokens.create(np.zeros((len(clip.frames), 4, tiny.WIDTH), np.float32))
        videos.append(llm.reduce(EncodedVideo(tokens, clip), reducer=registry.get(reducer), ratio=ratio))
    return shown(llm, *llm.lay_out(videos, "What?", 1))


def shown(llm, slots, text):
    """The text of slots, "*" for a visual token."""
    found, waiting = "", []
    for row in slots.source[: slots.length]:
        if row < len(text):
            waiting.append(int(text[row]))
            continue
        found += llm.tokenizer.decode(waiting) + "*"
        waiting = []
    return found + llm.tokenizer.decode(waiting)


def stts_tokens(folder):
    """STTS in a Qwen-VL tower on noise of 18 tokens: half of the windows are drawn, packed as masked, then all of them.

    Returns:
      The packed half, and all, whose tokens are checked to be those of the model; what the model makes of the patches.
    """
    model, grid = load_model(folder, dtype=jnp.float32).model, (3, 6, 4)
    patches = jax.random.normal(jax.random.key(0), (72, model.config.vision.patch_values))

    @functools.partial(jax.jit, static_argnames=("packing", "kept"))
    def run(patches, packing, kept):
        config = STTSConfig(method="random", prune_at=0, attention="plain", packing=packing)
        video = one_video(3, 18 - kept)
        return encode(encoder_of(model, 1, grid), patches, video, config, kept=kept, key=jax.random.key(1))

    packed, masked, whole = run(patches, "flat", 9), run(patches, "masked", 9), run(patches, "flat", 18)
    np.testing.assert_array_equal(packed.index, masked.index)
    np.testing.assert_allclose(packed.tokens, masked.tokens, atol=1e-4)
    if packed.deepstack is not None:
        np.testing.assert_allclose(packed.deepstack, masked.deepstack, atol=1e-4)
    dense = jax.jit(model.encode)(Patches(patches, grid))
    np.testing.assert_allclose(whole.tokens, dense.features.reshape(18, -1), atol=1e-4)
    return packed, whole, dense
