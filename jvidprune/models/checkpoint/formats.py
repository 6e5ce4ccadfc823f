"""Checkpoints that are published in forms this package does not read: quantised ones and adapters.

They are told by their JSON files alone, so that nothing large is fetched for them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.folder import INDEX, SINGLE, read_json

_ADAPTER = "adapter_config.json"
_CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Where config.json describes a quantisation: transformers, older compressed-tensors, MLX."""

_FILES = (
    ("quantize_config.json", "GPTQ"),
    ("quant_config.json", "AWQ"),
    ("hf_quant_config.json", "ModelOpt"),
    ("quanto_qmap.json", "quanto"),
    ("quantization_map.json", "quanto"),
    ("quantization_config.json", ""),
)
"""Files of its own that a quantisation is described in, with the method where the file names none."""

_TITLES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "auto-round": "AutoRound",
    "intel/auto-round": "AutoRound",
    "fp8": "FP8",
    "fbgemm_fp8": "FBGEMM FP8",
    "finegrained_fp8": "fine-grained FP8",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "eetq": "EETQ",
    "vptq": "VPTQ",
    "spqr": "SpQR",
    "higgs": "HIGGS",
    "bitnet": "BitNet",
    "modelopt": "ModelOpt",
    "exl2": "EXL2",
    "exl3": "EXL3",
}
"""How methods are written, by their `quant_method`; others are written as their config has them."""

_TENSORS = (
    *("qweight", "qzeros", "g_idx", "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point"),
    *("SCB", "absmax", "quant_map", "quant_state", "bitsandbytes__nf4", "bitsandbytes__fp4", "codebooks", "W_q"),
)
"""Last parts of the names of tensors that only quantised checkpoints hold."""


def check_format(folder: Path, source: str | Path | None = None) -> None:
    """Refuses adapters and quantised checkpoints.

    Args:
      folder: with the JSON files of a checkpoint; its weights need not be there.
      source: what the user calls it, for the sentence.

    Raises:
      JvidpruneError: the folder holds one of the two, which, and what to do; or an unreadable JSON file.
    """
    name = str(folder if source is None else source)
    check_adapter(folder, name)
    raw = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    found = next(_descriptions(raw), None)
    where = "config.json"
    if found is None:
        for file, method in _FILES:
            if (folder / file).exists():
                found, where = {"quant_method": method} | read_json(folder / file), file
                break
    if found is not None:
        raise JvidpruneError(
            f"{quoted(name, 300)} is quantised ({_title(found)}, as {where} says), which cannot be read: load the "
            "checkpoint that it was made from, in bfloat16, float16 or float32."
        )


def check_adapter(folder: Path, name: str) -> None:
    """Refuses a folder that holds an adapter.

    Raises:
      JvidpruneError: it does; the base model is named.
    """
    path = folder / _ADAPTER
    if not path.exists():
        return
    whole = any((folder / file).exists() for file in (SINGLE, INDEX))
    beside = any(folder.glob("adapter_model*"))
    if whole and not beside:
        # What merging leaves behind: the weights are whole.
        return
    base = read_json(path).get("base_model_name_or_path")
    of = f" for {quoted(base, 200)}" if isinstance(base, str) and base else ""
    holds = f"holds a whole model and an adapter{of}" if whole else f"is an adapter{of}, no whole model"
    raise JvidpruneError(
        f"{quoted(name, 300)} {holds} ({_ADAPTER}): merge the adapter into its base model (merge_and_unload and "
        "save_pretrained of peft) and load the merged folder."
    )


def _descriptions(raw: Mapping[str, Any], depth: int = 0) -> Iterator[Any]:
    """The quantisations that a config.json describes, those of nested configs behind its own."""
    for key in _CONFIG_KEYS:
        value = raw.get(key)
        if value and not (isinstance(value, Mapping) and _is_off(value)):
            yield value
    for key, value in raw.items():
        if key not in _CONFIG_KEYS and key.endswith("_config") and isinstance(value, Mapping) and depth < 4:
            yield from _descriptions(value, depth + 1)


def _is_off(found: Mapping[str, Any]) -> bool:
    """bitsandbytes' settings stay in configs of models that were saved whole; they say so."""
    flags = [found.get(key, found.get(f"_{key}")) for key in ("load_in_4bit", "load_in_8bit")]
    method = found.get("quant_method", "bitsandbytes")
    return method == "bitsandbytes" and any(flag is not None for flag in flags) and not any(flags)


def _title(found: Any) -> str:
    if not isinstance(found, Mapping):
        return quoted(found)
    bits: Any = next((found[key] for key in ("bits", "w_bit", "wbits", "num_bits") if key in found), None)
    method: Any = found.get("quant_method") or found.get("method")
    producer = found.get("producer")
    if not method and isinstance(producer, Mapping):
        method = producer.get("name")
    for size in (4, 8):
        if found.get(f"load_in_{size}bit") or found.get(f"_load_in_{size}bit"):
            method, bits = method or "bitsandbytes", size
    if not method:
        method = "AWQ" if "w_bit" in found else "compressed-tensors" if "config_groups" in found else None
    if not isinstance(method, str):
        method = "unnamed method" if method is None else quoted(method)
    title = _TITLES.get(method.lower(), quoted(method))
    return f"{title}, {bits} bit" if isinstance(bits, int) and not isinstance(bits, bool) else title


def odd_tensors(names: list[str]) -> str:
    """What tensors without a place in the model tell: the end of a sentence, "" where they tell nothing.

    Args:
      names: as they are stored.
    """
    parts = [set(name.split(".")) for name in names]
    if any(part & set(_TENSORS) for part in parts):
        return "these are tensors of a quantised checkpoint: load the one it was made from"
    if any({"lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector", "base_layer"} & part for part in parts):
        return "these are tensors of an adapter that is not merged: merge it (merge_and_unload of peft) and save again"
    return ""
