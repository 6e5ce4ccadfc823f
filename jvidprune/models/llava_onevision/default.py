"""A small, seeded LLaVA-OneVision with RANDOM weights in the published folder layout, for tests of code paths."""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig
from jvidprune.models.llava_onevision.params import name_table
from jvidprune.models.weights import Rule

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
"""Special tokens of the default tokenizer, behind its 256 bytes."""

UNTRAINED_MARK = "untrained"
"""A file of this name in a checkpoint folder says that its weights are random."""

_BYTES = 256

SIZES: dict[str, dict[str, Any]] = {
    # 84 px in patches of 7: 12 x 12 = 144 tokens a frame before pooling, 6 x 6 = 36 after.
    "default": {"vision": (96, 256, 6, 4, 84, 7), "text": (96, 256, 10, 6, 2)},
    "test": {"vision": (24, 32, 3, 2, 28, 4), "text": (32, 48, 3, 4, 2)},
}
"""Named sizes: vision (width, mlp, blocks, heads, image side, patch), text (width, mlp, layers, heads, kv heads)."""


def config_json(size: str = "default") -> dict[str, Any]:
    """The config.json of one of `SIZES`, in the published llava-hf layout."""
    width, mlp, layers, heads, image, patch = SIZES[size]["vision"]
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        "vision_use_head": True,
    }
    width, mlp, layers, heads, kv_heads = SIZES[size]["text"]
    text = {
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": _BYTES + len(SPECIAL_TOKENS),
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "torch_dtype": "float32",
        "text_config": text,
        "vision_config": vision,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_index": _BYTES + SPECIAL_TOKENS.index("<image>"),
        "video_token_index": _BYTES + SPECIAL_TOKENS.index("<video>"),
    }


def random_tensors(raw: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Seeded float32 tensors under the published names: kernels scaled by fan-in, norms near one, small biases."""
    config = LlavaOnevisionConfig.from_hf(raw)
    config = config.with_tensors(["vision_tower.vision_model.head.probe", "language_model.lm_head.weight"])
    vision, text = config.vision, config.text
    shapes = _shapes(config)
    rng, tensors = np.random.default_rng(seed), {}
    for rule in name_table(config).rules:
        layers = vision.layers if rule.target.startswith("vision.") else text.layers
        for layer in range(layers if "{L}" in rule.source else 1):
            name = rule.source.replace("{L}", str(layer))
            tensors[name] = _draw(rule, shapes[rule.target], rng)
    return tensors


def _draw(rule: Rule, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(shape)
    if rule.target.endswith("scale"):
        values = 1.0 + 0.1 * noise
    elif rule.target.endswith("bias"):
        values = 0.02 * noise
    elif rule.transform == "copy":
        values = 0.5 * noise
    else:
        values = noise / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def _shapes(config: LlavaOnevisionConfig) -> dict[str, tuple[int, ...]]:
    """Stored shape of each parameter's tensors, from the abstract module."""
    import jax.numpy as jnp
    from flax import nnx

    from jvidprune.models.llava_onevision.modules import LlavaOnevision

    state = nnx.state(nnx.eval_shape(lambda: LlavaOnevision(config, dtype=jnp.float32)))
    rules = {rule.target: rule for rule in name_table(config).rules}
    shapes = {}
    for path, variable in nnx.to_flat_state(state):
        target = ".".join(map(str, path))
        rule = rules[target]
        shape = variable.shape[1:] if "{L}" in rule.source else variable.shape
        patch = config.vision.patch_size
        stored = {"copy": shape, "transpose": shape[::-1], "conv": (shape[-1], config.vision.channels, patch, patch)}
        shapes[target] = stored[rule.transform]
    return shapes


def byte_tokenizer() -> Any:
    """A tokenizers.Tokenizer of 256 bytes, ids in the byte-level alphabet's order, and `SPECIAL_TOKENS`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_checkpoint(folder: Path, size: str = "default", seed: int = 0) -> None:
    """Writes config.json, model.safetensors, tokenizer.json and preprocessor_config.json into an existing folder."""
    from safetensors.numpy import save_file

    raw = config_json(size)
    ends = [_BYTES + SPECIAL_TOKENS.index(token) for token in ("<|im_end|>", "<|endoftext|>")]
    side = raw["vision_config"]["image_size"]
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": side, "width": side}}
    save_file(random_tensors(raw, seed), folder / "model.safetensors", metadata={"format": "pt"})
    for name, value in (
        ("config.json", raw),
        ("generation_config.json", {"eos_token_id": ends}),
        ("preprocessor_config.json", pixels),
    ):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / UNTRAINED_MARK).write_text("The weights in this folder are random.\n", encoding="utf-8")


def build_default(cache_dir: str | Path, size: str = "default", seed: int = 0) -> Path:
    """The folder of the default checkpoint below `cache_dir`, written on the first call.

    The folder's name carries its settings; it is filled beside and renamed in one step, so that processes that start at
    once never see half a checkpoint.

    Args:
      cache_dir: created if needed.
      size: one of `SIZES`.
      seed: of the random weights; the same seed gives the same bytes.
    """
    settings = json.dumps([config_json(size), seed, SPECIAL_TOKENS], sort_keys=True).encode()
    cache = Path(cache_dir).expanduser()
    final = cache / f"llava-onevision-{size}-{hashlib.sha256(settings).hexdigest()[:8]}"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=cache))
    try:
        write_checkpoint(work, size, seed)
        work.chmod(0o755)
        os.rename(work, final)
    except OSError:
        # Another process may have been first; its folder is the same.
        if not final.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final
