"""Families are objects: each of ours is whole, and one from outside the package loads, encodes and answers."""

import dataclasses
import subprocess
import sys
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import tiny_checkpoints as tiny
from helpers.reducer_checks import refused

import jvidprune
from jvidprune import backbones
from jvidprune.llm.conventions import CONVENTIONS
from jvidprune.llm.encoded import clip_of
from jvidprune.llm.prompts.llava import NewlinePrompts
from jvidprune.llm.prompts.registry import BUILDERS, builder_of
from jvidprune.llm.prompts.templates import templates
from jvidprune.models import family as families
from jvidprune.models.base import VideoModel
from jvidprune.models.checkpoint.load import family_of
from jvidprune.models.checkpoint.names import NameTable, affine, decoder_rules
from jvidprune.models.decoder import Decoder
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.evidence import check_evidence
from jvidprune.models.settings import FamilySettings, squashed
from jvidprune.models.templates import PromptTemplate
from jvidprune.parallel import DECODER_AXES
from jvidprune.reducers import SToP, registry
from jvidprune.reducers.controls import Random
from jvidprune.reducers.protocol import class_with_defaults
from jvidprune.reducers.serialise import SavedPruning
from jvidprune.tokens import VideoTokens

# --- a family of one's own -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Squares:
    """A tower of one matrix: every square of pixels becomes a token."""

    image_size: int = 16
    patch_size: int = 8
    width: int = 12
    heads: int = 2
    layers: int = 1
    attention: str = "auto"


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    vision: Squares
    text: DecoderConfig

    family: ClassVar[str] = "toy"
    provides: ClassVar[frozenset[str]] = frozenset({"frame_embedding"})
    grid: ClassVar[tuple[int, int]] = (2, 2)
    unpooled_grid: ClassVar[tuple[int, int]] = (2, 2)

    @classmethod
    def from_hf(cls, raw):
        return cls(Squares(), DecoderConfig.from_hf(raw["text_config"]))

    def with_tensors(self, names):
        return dataclasses.replace(self, text=dataclasses.replace(self.text, tied="lm_head.weight" not in names))

    @property
    def units(self):
        return {"heads": self.text.heads, "kv_heads": self.text.kv_heads}


class Toy(VideoModel):
    def __init__(self, config: ToyConfig, *, dtype: Any, rngs: Any = None):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.config = config
        values = 3 * config.vision.patch_size**2
        self.look = nnx.Linear(values, config.text.width, param_dtype=dtype, rngs=rngs)
        self.lm = Decoder(config.text, dtype=dtype, rngs=rngs)

    def encode(self, pixels, needs=frozenset()):
        check_evidence("toy", needs, self.provides, None)
        frames, side = pixels.shape[0], self.config.vision.patch_size
        squares = pixels.reshape(frames, 3, 2, side, 2, side).transpose(0, 2, 4, 1, 3, 5).reshape(frames, 4, -1)
        features = self.look(squares)
        evidence = {"frame_embedding": features.mean(axis=1)} if needs else {}
        return VideoTokens.create(features, evidence, grid=(2, 2))


def toy_names(config):
    text = config.text
    rules = decoder_rules("model", "lm_head", qkv_bias=text.qkv_bias, qk_norm=text.qk_norm, tied=text.tied)
    return NameTable((), (), (*affine("look", "look"), *rules))


class CountedPrompts(NewlinePrompts):
    """A way of one's own: the number of frames stands before a video."""

    def ids(self, videos, question):
        before, *others = self.texts(question, len(videos))
        counts = "".join(f"{len(clip_of(one.video).frames)} frames: " for one in videos)
        return [self.tokenizer.encode(text) for text in (before + counts, *others)]


TOY = families.Family(
    name="toy",
    names=frozenset({"toy"}),
    config=ToyConfig,
    model=Toy,
    name_table=toy_names,
    sharding=DECODER_AXES,
    settings={
        "released": FamilySettings("toy", "no_token", "all", 4, "uniform", squashed, "counted", writes_times=True)
    },
    templates={"toy": PromptTemplate("Look: ", " {question} Say:")},
    presets={"divprune": {"scope": "frame"}, "flashvid": {"alpha": 0.25}},
)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The family registered, and a checkpoint of it."""
    monkeypatch.setattr(families, "_REGISTERED", {})
    monkeypatch.setattr(backbones, "_ADDED", {})
    monkeypatch.setitem(BUILDERS, "counted", CountedPrompts)
    families.register(TOY)
    monkeypatch.setitem(tiny.CONFIGS, "toy", {"model_type": "toy", "text_config": tiny._TEXT})
    return tiny.write("toy", tmp_path / "toy")


def test_a_family_from_outside_loads_and_answers(toy):
    assert families.names()[-1] == "toy"
    assert families.listing()[-1] == {"family": "toy", "paper": "-", "checkpoints": "-"}
    llm = jvidprune.VideoLLM.load(toy)
    frames = np.random.default_rng(0).integers(0, 256, (6, 40, 30, 3), np.uint8)
    refused(lambda: llm.encode(frames), "the prompts of toy hold the times of frames")
    answer = llm.ask(frames, "What?", reducer="uniform", ratio=0.5, fps=2.0, max_new_tokens=3)
    assert (answer.kept, answer.visual) == (12, 24)
    assert answer.prompt == 12 + len(llm.tokenizer.encode("Look: 6 frames: " + " What? Say:"))
    # Evidence of its own is asked for and named like that of any other.
    video = llm.encode(frames, fps=2.0)
    refused(lambda: llm.reduce(video, reducer="flashvid", ratio=0.5), "toy cannot give evidence attention_last")
    found = llm.encode(frames, fps=2.0, needs=frozenset({"frame_embedding"})).tokens.evidence["frame_embedding"]
    np.testing.assert_allclose(found, video.tokens.features.mean(axis=1), atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Tuned(Random):
    """A method of one's own with settings of a family of one's own."""

    PRESETS: ClassVar = {"toy": {"seed": 7}}


def test_methods_have_settings_of_a_family_from_outside(toy):
    assert backbones.backbones() == (*backbones.NAMES, "toy")
    config = jvidprune.VideoLLM.load(toy).loaded.config
    assert registry.for_model("divprune", config).scope == "frame"
    assert registry.for_model("divprune(scope=video)", config).scope == "video"
    assert registry.for_model("fastvid", config) == registry.get("fastvid", layers=config.text.layers)
    chain = registry.for_model("sequential(first=visionzip, second=divprune)", config)
    assert (chain.backbone, chain.second.scope) == ("toy", "frame")
    assert registry.for_model("stop(base=divprune)", config).base.scope == "frame"
    # What SToP's runs pass to a base goes before the family's.
    assert registry.for_model("stop(base=flashvid)", config).base.alpha == 0.7
    assert class_with_defaults(Tuned).preset("toy") == {"seed": 7}
    assert SavedPruning(chain, 0.1, "toy").record()["backbone"] == "toy"
    refused(lambda: registry.get("divprune", "toys"), "unknown backbone 'toys'.*toy")
    refused(lambda: SToP("visionzip", backbone="toys"), "SToP's backbone: unknown backbone 'toys'")


def test_the_answer_is_that_of_the_prompt_put_together_by_hand(toy):
    llm = jvidprune.VideoLLM.load(toy, dtype="float32")
    frames = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    model, encode = llm.loaded.model, llm.tokenizer.encode
    answer = llm.ask(frames, "What?", reducer="none", ratio=1.0, fps=1.0, max_new_tokens=1)
    pixels = np.moveaxis(frames, -1, 1) / 127.5 - 1
    tokens = model.encode(jnp.asarray(pixels, jnp.float32)).features.reshape(12, -1)
    words = [model.embed_text(jnp.asarray(encode(text))) for text in ("Look: 3 frames: ", " What? Say:")]
    x = jnp.concatenate([words[0], tokens, words[1]])[None]
    logits = model.lm.forward(x, jnp.arange(x.shape[1])[None], jnp.ones(x.shape[:2], bool)).logits
    expected = int(logits[0, -1].argmax())
    assert answer.token_ids == (() if expected in llm.eos_ids else (expected,))


def test_what_is_wrong_with_a_family_is_said_when_it_is_registered(toy):
    families.register(TOY)
    refused(lambda: families.register(dataclasses.replace(TOY)), "there is a model family 'toy' already")
    taken, empty = dataclasses.replace(TOY, name="molmo2"), dataclasses.replace(TOY, name="other", settings={})
    refused(lambda: families.register(taken), "there is a model family 'molmo2' already")
    refused(lambda: families.register(empty), "no settings for .* released")
    refused(lambda: families.get("gpt"), "unknown model family 'gpt'; known: llava_onevision, .*, toy")
    mine = dataclasses.replace(TOY.settings["released"], prompt="mine")
    refused(lambda: builder_of(mine), "there are newlines, mrope")


# --- ours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.names())
def test_every_family_is_whole(name):
    found = families.get(name)
    assert found.name == found.config.family == name
    assert set(found.settings) <= set(CONVENTIONS)
    assert found.paper != "-"
    assert found.checkpoints
    for settings in [*found.settings.values(), *found.lmms_lab.values()]:
        assert settings.template in found.templates
        assert settings.prompt in BUILDERS
        assert (settings.mrope_rule is not None) == (settings.prompt == "mrope")
        assert settings.writes_times == (settings.prompt in ("mrope", "frames", "times"))
        assert (settings.grid is not None) == (settings.prompt in ("mrope", "times"))
    assert templates().keys() >= found.templates.keys()
    described = [one.name for one in families.families() if one.describes(tiny.CONFIGS[name])]
    assert described == [family_of(tiny.CONFIGS[name])] == [name]


def test_the_registry_alone_imports_no_family():
    code = "import sys, jvidprune.models.family as f; f.names(); print('jvidprune.models.qwen3_vl' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
