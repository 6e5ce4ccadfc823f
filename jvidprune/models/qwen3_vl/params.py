"""Tensor names of Qwen3-VL."""

from jvidprune.models.checkpoint.names import NameTable, Rule, affine, norm
from jvidprune.models.qwen import model as qwen_vl
from jvidprune.models.qwen3_vl.config import Qwen3VLConfig


def name_table(config: Qwen3VLConfig) -> NameTable:
    """The names of the tensors of one model."""
    rules = [
        Rule("visual.patch_embed.proj.bias", "vision.patch_embed.bias"),
        Rule("visual.pos_embed.weight", "vision.pos_embed"),
    ]
    for i in (1, 2):
        rules += affine(f"visual.blocks.{{L}}.mlp.linear_fc{i}", f"vision.blocks.mlp.fc{i}")
    mergers = [("visual.merger", "vision.merger")]
    if config.vision.taps:
        mergers.append(("visual.deepstack_merger_list.{L}", "vision.deepstack"))
    for source, target in mergers:
        rules += norm(f"{source}.norm", f"{target}.norm", bias=True)
        for i in (1, 2):
            rules += affine(f"{source}.linear_fc{i}", f"{target}.mlp.fc{i}")
    return qwen_vl.name_table(config, tuple(rules))
