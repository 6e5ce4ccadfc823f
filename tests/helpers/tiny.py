"""Tiny checkpoint folders of every family that read and write text: golden weights with a vocabulary of bytes."""

import json
from pathlib import Path

import numpy as np
from helpers.places import MODELS
from safetensors.numpy import load_file, save_file

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
PAD = 256 + SPECIAL.index("<|video_pad|>")
VOCAB = 300


def tokenizer(special=SPECIAL):
    """256 bytes and special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return made


def write_checkpoint(folder: Path, family: str) -> Path:
    """The golden checkpoint of a family, its embedding and head repeated with another scale up to `VOCAB` rows."""
    tensors = load_file(MODELS / family / "model.safetensors")
    config = json.loads((MODELS / family / "config.json").read_text())
    for name, value in tensors.items():
        if "embed_tokens" in name or "lm_head" in name:
            tensors[name] = np.concatenate([value, 1.1 * value, 0.9 * value])[:VOCAB]
    config.get("text_config", config)["vocab_size"] = VOCAB
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"video_token_id": PAD}))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder
