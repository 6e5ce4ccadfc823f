"""Qwen2.5-VL as a family."""

from jvidprune.models.family import Family
from jvidprune.models.qwen.family import KIND, LMMS_PIXELS, LMMS_UTILS, SHARDING, TELLTALES, changed, released
from jvidprune.models.qwen.model import QwenVL
from jvidprune.models.qwen.pixels import ALONE, TWICE, PixelSteps
from jvidprune.models.qwen2_5_vl.config import Qwen25VLConfig
from jvidprune.models.qwen2_5_vl.params import name_table
from jvidprune.models.templates import PromptTemplate

_RELEASED = released("qwen2_5_vl", TWICE)

TEMPLATE = PromptTemplate(
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "{question}<|im_end|>\n<|im_start|>assistant\n",
    between="",
)
"""The chat template without vision markers, which stand around each video block."""

FAMILY = Family(
    name="qwen2_5_vl",
    names=frozenset({"qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"}),
    config=Qwen25VLConfig,
    model=QwenVL,
    name_table=name_table,
    sharding=SHARDING,
    settings={
        "released": _RELEASED,
        "transformers": changed(_RELEASED, ALONE, rule="hf_qwen2", mrope_rule="transformers-5", own_chat=True),
        "lmms-eval": changed(_RELEASED, PixelSteps(LMMS_UTILS, limits=LMMS_PIXELS), mrope_rule="lmms-eval"),
    },
    templates={"qwen2_5_vl": TEMPLATE},
    connection="mergers",
    kind=KIND,
    telltales=TELLTALES,
    paper="2502.13923",
    checkpoints=("Qwen/Qwen2.5-VL-7B-Instruct",),
    representative="qwen2.5-vl-7b",
)
