"""LLaVA-Video (arXiv 2410.02713): the modules of LLaVA-OneVision; the config says how it pools and breaks lines."""

from jvidprune.models.llava_onevision.modules import LlavaOnevision


class LlavaVideo(LlavaOnevision):
    """SigLIP tower, projector, 2x2 pooling of each frame, Qwen2 decoder.

    `encode` gives content tokens alone, (T, 169, D) with the published pooling; `ops.newline.arrange` puts
    `newline` between them, in the layout that `config.newline` names, whether or not tokens are dropped before.
    """
