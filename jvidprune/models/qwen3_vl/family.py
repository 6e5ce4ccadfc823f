"""Qwen3-VL as a family."""

from jvidprune.models.family import Family
from jvidprune.models.qwen.family import KIND, LMMS_UTILS, SHARDING, TELLTALES, changed, released
from jvidprune.models.qwen.model import QwenVL
from jvidprune.models.qwen.pixels import ALONE, ONCE, PixelSteps
from jvidprune.models.qwen2_5_vl.family import TEMPLATE
from jvidprune.models.qwen3_vl.config import Qwen3VLConfig
from jvidprune.models.qwen3_vl.params import name_table
from jvidprune.models.templates import PromptTemplate

_RELEASED = released("qwen3_vl", ONCE)

FAMILY = Family(
    name="qwen3_vl",
    names=frozenset({"qwen3_vl", "Qwen3VLForConditionalGeneration"}),
    config=Qwen3VLConfig,
    model=QwenVL,
    name_table=name_table,
    sharding=SHARDING,
    settings={
        "released": _RELEASED,
        "transformers": changed(
            _RELEASED, ALONE, rule="hf_qwen3", mrope_rule="transformers-5", markers="around", own_chat=True
        ),
        # A system turn, which Qwen3-VL's own prompt leaves out: the prompt of Qwen2.5-VL.
        "lmms-eval": changed(
            _RELEASED, PixelSteps(LMMS_UTILS, processor=False), mrope_rule="lmms-eval", template="qwen2_5_vl"
        ),
    },
    templates={
        "qwen2_5_vl": TEMPLATE,
        "qwen3_vl": PromptTemplate("<|im_start|>user\n", "{question}<|im_end|>\n<|im_start|>assistant\n", between=""),
    },
    connection="mergers",
    kind=KIND,
    telltales=TELLTALES,
    own_sampling={"fps": 2.0},
    paper="2511.21631",
    checkpoints=("Qwen/Qwen3-VL-8B-Instruct",),
    representative="qwen3-vl-8b",
)
