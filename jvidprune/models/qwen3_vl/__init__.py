"""Qwen3-VL: config and name table; the modules are shared with Qwen2.5-VL."""

from jvidprune.models.qwen.model import QwenVL as Model
from jvidprune.models.qwen3_vl.config import Qwen3VLConfig
from jvidprune.models.qwen3_vl.config import Qwen3VLConfig as Config
from jvidprune.models.qwen3_vl.family import FAMILY
from jvidprune.models.qwen3_vl.params import name_table
