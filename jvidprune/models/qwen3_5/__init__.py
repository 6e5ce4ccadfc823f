"""Qwen3.5: config, name table and a decoder with recurrent layers; tower and prompts are those of Qwen3-VL."""

from jvidprune.models.qwen3_5.config import Qwen35Config
from jvidprune.models.qwen3_5.config import Qwen35Config as Config
from jvidprune.models.qwen3_5.family import FAMILY
from jvidprune.models.qwen3_5.modules import Qwen35 as Model
from jvidprune.models.qwen3_5.params import name_table
