"""Tensor names of Qwen2.5-VL."""

from jvidprune.models.checkpoint.names import NameTable, affine, norm
from jvidprune.models.qwen import model as qwen_vl
from jvidprune.models.qwen2_5_vl.config import Qwen25VLConfig


def name_table(config: Qwen25VLConfig) -> NameTable:
    """The names of the tensors of one model."""
    rules = []
    for part in ("gate", "up", "down"):
        rules += affine(f"visual.blocks.{{L}}.mlp.{part}_proj", f"vision.blocks.mlp.{part}")
    rules += norm("visual.merger.ln_q", "vision.merger.norm")
    rules += affine("visual.merger.mlp.0", "vision.merger.mlp.fc1")
    rules += affine("visual.merger.mlp.2", "vision.merger.mlp.fc2")
    return qwen_vl.name_table(config, tuple(rules))
