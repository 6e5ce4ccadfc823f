"""The modules of Qwen3.5."""

from jvidprune.models.hybrid import HybridDecoder
from jvidprune.models.qwen.model import QwenVL


class Qwen35(QwenVL):
    """Qwen3-VL's tower without DeepStack levels in front of a decoder with recurrent layers."""

    decoder = HybridDecoder
