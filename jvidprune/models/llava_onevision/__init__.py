"""LLaVA-OneVision: config, modules and name table."""

from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig as Config
from jvidprune.models.llava_onevision.family import FAMILY
from jvidprune.models.llava_onevision.modules import LlavaOnevision
from jvidprune.models.llava_onevision.modules import LlavaOnevision as Model
from jvidprune.models.llava_onevision.params import HEAD_TENSORS, name_table
