"""Qwen3-VL with experts: config; modules and name table are shared with Qwen3-VL."""

from jvidprune.models.qwen.model import QwenVL as Model
from jvidprune.models.qwen3_vl.params import name_table
from jvidprune.models.qwen3_vl_moe.config import Qwen3VLMoeConfig
from jvidprune.models.qwen3_vl_moe.config import Qwen3VLMoeConfig as Config
from jvidprune.models.qwen3_vl_moe.family import FAMILY
