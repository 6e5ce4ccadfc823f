"""Qwen3.5 as a family: Qwen3-VL's tower, frames and prompts, without DeepStack, before recurrent layers."""

import dataclasses

from jvidprune.models.qwen3_5.config import Qwen35Config
from jvidprune.models.qwen3_5.modules import Qwen35
from jvidprune.models.qwen3_5.params import name_table
from jvidprune.models.qwen3_vl.family import FAMILY as QWEN3_VL
from jvidprune.models.templates import PromptTemplate
from jvidprune.parallel import DELTA_AXES

_ANSWER = "{question}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
"""Answers without thinking, as the chat template has it with `enable_thinking=False`."""

FAMILY = dataclasses.replace(
    QWEN3_VL,
    name="qwen3_5",
    names=frozenset({"qwen3_5", "Qwen3_5ForConditionalGeneration"}),
    config=Qwen35Config,
    model=Qwen35,
    name_table=name_table,
    sharding=(*DELTA_AXES, *QWEN3_VL.sharding),
    # lmms-eval has no class of it.
    settings={
        name: dataclasses.replace(QWEN3_VL.settings[name], template="qwen3_5") for name in ("released", "transformers")
    },
    templates={"qwen3_5": PromptTemplate("<|im_start|>user\n", _ANSWER, between="")},
    # Of its recurrent layers; there is none of the models.
    paper="2412.06464",
    checkpoints=("Qwen/Qwen3.5-9B", "Qwen/Qwen3.5-27B"),
    representative="qwen3.5-9b",
)
