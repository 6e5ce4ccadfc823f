"""VideoLLaMA3 as a family."""

import dataclasses

from jvidprune.models.family import Family
from jvidprune.models.qwen.pixels import ALONE, stepped, with_pictures
from jvidprune.models.settings import FamilySettings
from jvidprune.models.templates import PromptTemplate
from jvidprune.models.video_llama_3.config import VideoLlama3Config
from jvidprune.models.video_llama_3.modules import VideoLlama3
from jvidprune.models.video_llama_3.params import name_table
from jvidprune.parallel import DECODER_AXES, TOWER_AXES


def _picture_config(config: VideoLlama3Config) -> VideoLlama3Config:
    """Without the means over 2 x 2 patches, which are for videos."""
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, merge=1))


# Checkpoints for transformers' class came from the authors, so that its way is theirs.
_VIDEOS = FamilySettings(
    "video_llama_3",
    "no_token",
    "all",
    180,
    "hf_video_llama_3",
    **stepped(ALONE),
    prompt="times",
    writes_times=True,
    own_chat=True,
    pictures=True,
    picture_config=_picture_config,
    fps=1.0,
)
_WAY = with_pictures(_VIDEOS, ALONE)

FAMILY = Family(
    name="video_llama_3",
    names=frozenset({"video_llama_3", "VideoLlama3ForConditionalGeneration"}),
    config=VideoLlama3Config,
    model=VideoLlama3,
    name_table=name_table,
    sharding=(
        *DECODER_AXES,
        *TOWER_AXES,
        (r"vision\.projector\.fc1\.kernel", ("vit_embed", "mlp")),
        (r"vision\.projector\.fc1\.bias", ("mlp",)),
        (r"vision\.projector\.fc2\.kernel", ("mlp", "embed")),
    ),
    settings={"released": _WAY, "transformers": _WAY},
    templates={
        # For folders without a chat template: the system turn of Qwen2.5.
        "video_llama_3": PromptTemplate(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
            "\n{question}<|im_end|>\n<|im_start|>assistant\n",
            between="\n",
        )
    },
    connection="pooled",
    kind="a VideoLLaMA3 model",
    telltales=("projector.readout.", "model.projector.readout."),
    paper="2501.13106",
    checkpoints=("lkhl/VideoLLaMA3-2B-HF", "lkhl/VideoLLaMA3-7B-HF"),
    representative="videollama3-7b",
)
