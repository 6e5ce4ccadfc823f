"""LLaVA-Video: LLaVA-OneVision's modules and tensor names with another pooling and newlines between frames or rows."""

from jvidprune.models.llava_onevision.params import HEAD_TENSORS, name_table
from jvidprune.models.llava_video.config import LlavaVideoConfig
from jvidprune.models.llava_video.config import LlavaVideoConfig as Config
from jvidprune.models.llava_video.family import FAMILY
from jvidprune.models.llava_video.modules import LlavaVideo
from jvidprune.models.llava_video.modules import LlavaVideo as Model
