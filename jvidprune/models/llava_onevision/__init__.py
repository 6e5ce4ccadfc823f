"""LLaVA-OneVision: config, modules, name table, and an untrained checkpoint for tests."""

from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig as Config
from jvidprune.models.llava_onevision.modules import LlavaOnevision
from jvidprune.models.llava_onevision.modules import LlavaOnevision as Model
from jvidprune.models.llava_onevision.params import HEAD_TENSORS, name_table
