"""Makes the golden files of tiled pictures: what transformers' processors and models make of pictures, end to end.

    python3 -m venv golden && golden/bin/pip install torch torchvision transformers qwen-vl-utils '.[test]'
    PYTHONPATH=tests golden/bin/python experiments/golden_tiles.py tests/data

One `tiles_FAMILY.npz` for each family: ids of a prompt with pictures (`CASES`), the levels of the tiles and the logits
behind the prompt. A seed makes the weights (`helpers.seeded`) and another the pictures, so that nothing else is stored.
PyTorch, torchvision and transformers >= 5.23 are needed here and nowhere else.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

SEED = 5
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKS = {
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    "llava_onevision": ("<image>", "<video>"),
    # In the order of their ids behind the vocabulary.
    "molmo2": (
        *("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>"),
        *("<frame_start>", "<frame_end>", "<|video|>"),
    ),
}
CASES: dict[str, tuple[tuple[int, int], ...]] = {
    # Seven tiles, and one alone.
    "internvl": ((17, 25), (8, 8)),
    # 3 x 4 tiles with room above and below, whose map is resized.
    "llava_onevision": ((17, 31),),
    # 1 x 4 crops and 2 x 2; of sizes without rounding ties, which are up to the machine.
    "molmo2": ((11, 29), (19, 23)),
}
"""Heights and widths of the pictures of a prompt, whose tiles have 8 pixels on a side."""

TEXTS = {
    "internvl": ("<|im_start|>user\n", "\n", "\nWhat?<|im_end|>\n<|im_start|>assistant\n"),
    "llava_onevision": ("<|im_start|>user ", "\nWhat?<|im_end|><|im_start|>assistant\n"),
    "molmo2": ("", " ", "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"),
}
"""Around and between pictures."""

PLACEHOLDERS = {"internvl": "<IMG_CONTEXT>", "llava_onevision": "<image>", "molmo2": "<|image|>"}

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROCESSORS: dict[str, dict[str, Any]] = {
    "internvl": {"size": {"height": 8, "width": 8}, "image_mean": _MEAN, "image_std": _STD, "crop_to_patches": False},
    "llava_onevision": {
        "size": {"height": 8, "width": 8},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_grid_pinpoints": [[8 * rows, 8 * columns] for rows in range(1, 5) for columns in range(1, 5)],
    },
    "molmo2": {
        "size": {"height": 10, "width": 10},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "max_crops": 4,
        "overlap_margins": [1, 1],
        "patch_size": 2,
    },
}
"""preprocessor_config.json."""

_TEXT = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}
_VISION = {
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 2,
    "image_size": 8,
}


def vocabulary(family: str) -> tuple[str, ...]:
    """Special tokens, behind 256 bytes."""
    return (*SPECIAL, *MARKS[family])


def configuration(family: str) -> dict[str, Any]:
    """config.json."""
    known = vocabulary(family)
    size, at = 256 + len(known), {token: 256 + number for number, token in enumerate(known)}
    text = _TEXT | {"vocab_size": size}
    if family == "molmo2":
        ids = {
            f"{name}_id": at[token]
            for name, token in {
                "image_start_token": "<im_start>",
                "image_end_token": "<im_end>",
                "image_patch": "<im_patch>",
                "image_col": "<im_col>",
                "low_res_image_start_token": "<low_res_im_start>",
                "image_low_res": "<im_low>",
                "frame_start_token": "<frame_start>",
                "frame_end_token": "<frame_end>",
            }.items()
        }
        return {
            "model_type": "molmo2",
            "architectures": ["Molmo2ForConditionalGeneration"],
            "vision_config": _VISION | {"image_size": [10, 10], "num_key_value_heads": 2, "head_dim": 4},
            "adapter_config": {
                "vision_feature_layer": [1, 0],
                "hidden_size": 8,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 4,
                "intermediate_size": 12,
                "text_hidden_size": 8,
            },
            "text_config": text | {"head_dim": 4, "vocab_size": size - 16, "additional_vocab_size": 16},
            "tie_word_embeddings": False,
            **ids,
        }
    if family == "llava_onevision":
        return {
            "model_type": "llava_onevision",
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "vision_config": _VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
            "text_config": text | {"model_type": "qwen2"},
            "image_token_index": at["<image>"],
            "video_token_index": at["<video>"],
            "vision_aspect_ratio": "anyres_max_4",
            "image_grid_pinpoints": PROCESSORS[family]["image_grid_pinpoints"],
            "tie_word_embeddings": False,
        }
    return {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "vision_config": _VISION | {"image_size": [8, 8], "patch_size": [2, 2], "attention_bias": True},
        "text_config": text | {"model_type": "qwen2"},
        "image_token_id": at["<IMG_CONTEXT>"],
        "image_seq_length": 4,
        "tie_word_embeddings": False,
    }


def pictures(family: str, seed: int = SEED) -> list[np.ndarray]:
    """(H, W, 3) uint8 noise."""
    rng = np.random.RandomState(seed)
    return [rng.randint(0, 256, (*size, 3)).astype(np.uint8) for size in CASES[family]]


def write(folder: Path, family: str, seed: int = SEED) -> Path:
    """A checkpoint folder."""
    from helpers import seeded
    from helpers.tiny import tokenizer

    seeded.write(folder, configuration(family), seed)
    tokenizer(vocabulary(family)).save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    # Where a prompt begins with the tokenizer's token for that, or for its end.
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


def processor(family: str) -> Any:
    """The processor of transformers."""
    from helpers.tiny import tokenizer
    from helpers.torch_processors import modules

    modules()
    import transformers

    if family == "molmo2":
        texts = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer(vocabulary(family)), pad_token="<|endoftext|>", eos_token="<|endoftext|>"
        )
        image = transformers.Molmo2ImageProcessor(**PROCESSORS[family])
        return transformers.Molmo2Processor(image, transformers.Molmo2VideoProcessor(), texts)
    if family == "llava_onevision":
        texts = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer(vocabulary(family)), pad_token="<|endoftext|>"
        )
        image, video = transformers.LlavaOnevisionImageProcessor(**PROCESSORS[family]), None
        video = transformers.LlavaOnevisionVideoProcessor()
        return transformers.LlavaOnevisionProcessor(
            image,
            texts,
            video,
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
        )
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    named = dict(zip(names, MARKS[family], strict=True))
    texts = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(vocabulary(family)), pad_token="<|endoftext|>", extra_special_tokens=named
    )
    image, video = transformers.GotOcr2ImageProcessor(**PROCESSORS[family]), transformers.InternVLVideoProcessor()
    return transformers.InternVLProcessor(image, texts, video, image_seq_length=4)


def run(folder: Path, family: str, shown: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What the reference makes of pictures.

    Args:
      folder: from `write`.
      family: of the model.
      shown: (H, W, 3) pictures.
    """
    made = processor(family)
    import torch
    import transformers
    from PIL import Image

    first, *between = TEXTS[family]
    text = first + "".join(PLACEHOLDERS[family] + part for part in between)
    # Molmo2 attends both ways between what is marked as visual.
    marked = {"return_mm_token_type_ids": True} if family == "molmo2" else {}
    inputs = made(images=[Image.fromarray(one) for one in shown], text=[text], return_tensors="pt", **marked)
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    # SigLIP's last norm stands behind the features that LLaVA reads.
    found = ({name for name in value if "post_layernorm" not in str(name)} for value in info.values())
    if odd := [names for names in found if names]:
        raise SystemExit(f"the class has other tensors: {odd}.")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits[0, -1]
    return {
        "input_ids": inputs["input_ids"][0].numpy().astype(np.int32),
        "levels": levels(family, _unfolded(family, inputs["pixel_values"].numpy())),
        "logits": logits.numpy(),
    }


def _unfolded(family: str, values: np.ndarray) -> np.ndarray:
    """Tiles of (..., 3, S, S), which Molmo2's processor gives as patches of (row, column, channel)."""
    if family != "molmo2":
        return values
    patch = PROCESSORS[family]["patch_size"]
    side = PROCESSORS[family]["size"]["height"] // patch
    cut = values.reshape(-1, side, side, patch, patch, 3)
    return cut.transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, side * patch, side * patch)


def levels(family: str, values: np.ndarray) -> np.ndarray:
    """Normalised tiles (..., 3, S, S) as the bytes that they are of."""
    given = PROCESSORS[family]
    mean, std = (np.asarray(given[name], np.float64).reshape(3, 1, 1) for name in ("image_mean", "image_std"))
    found = (values * std + mean) * 255
    assert np.abs(found - np.rint(found)).max() < 1e-3
    return np.rint(found).astype(np.uint8)


def main() -> None:
    """Writes all files."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the data of tests")
    parser.add_argument("--families", nargs="+", default=list(CASES), choices=list(CASES))
    given = parser.parse_args()
    for family in given.families:
        with tempfile.TemporaryDirectory() as folder:
            found = run(write(Path(folder), family), family, pictures(family))
        path = given.out / f"tiles_{family}.npz"
        np.savez_compressed(path, **found)
        print(family, path.stat().st_size, {name: value.shape for name, value in found.items()})


if __name__ == "__main__":
    main()
