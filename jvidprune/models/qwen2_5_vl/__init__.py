"""Qwen2.5-VL: config and name table; the modules are shared with Qwen3-VL."""

from jvidprune.models.qwen.model import QwenVL as Model
from jvidprune.models.qwen2_5_vl.config import Qwen25VLConfig
from jvidprune.models.qwen2_5_vl.config import Qwen25VLConfig as Config
from jvidprune.models.qwen2_5_vl.family import FAMILY
from jvidprune.models.qwen2_5_vl.params import name_table
