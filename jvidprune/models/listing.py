"""What `jvidprune models` says of each family."""

from jvidprune.models.checkpoint.load import FAMILIES

_KNOWN: dict[str, tuple[str, str]] = {
    "llava_onevision": ("2408.03326", "llava-hf/llava-onevision-qwen2-7b-ov-hf, lmms-lab/llava-onevision-qwen2-7b-ov"),
    "llava_video": ("2410.02713", "lmms-lab/LLaVA-Video-7B-Qwen2"),
    "qwen2_5_vl": ("2502.13923", "Qwen/Qwen2.5-VL-7B-Instruct"),
    "qwen3_vl": ("2511.21631", "Qwen/Qwen3-VL-8B-Instruct"),
    "molmo2": ("2601.10611", "allenai/Molmo2-4B, allenai/Molmo2-8B, allenai/Molmo2-O-7B"),
}


def families() -> list[dict[str, str]]:
    """One row a family that checkpoints load for: name, paper, published checkpoints."""
    rows = []
    for name in FAMILIES:
        paper, checkpoints = _KNOWN.get(name, ("-", "-"))
        rows.append({"family": name, "paper": paper, "checkpoints": checkpoints})
    return rows
