"""InternVL as a family."""

import functools

from jvidprune.models.family import Family
from jvidprune.models.internvl import pictures
from jvidprune.models.internvl.config import InternVLConfig
from jvidprune.models.internvl.modules import InternVL
from jvidprune.models.internvl.params import name_table
from jvidprune.models.settings import FamilySettings, squashed
from jvidprune.models.templates import PromptTemplate
from jvidprune.parallel import DECODER_AXES, TOWER_AXES
from jvidprune.video.preprocess import IMAGENET_MEAN, IMAGENET_STD

# Checkpoints for transformers' class came from the authors, so that its way is theirs.
_WAY = FamilySettings(
    "internvl",
    "no_token",
    "all",
    32,
    "hf_internvl",
    functools.partial(squashed, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    prompt="numbered",
    own_chat=True,
    pictures=True,
    picture_pixels=pictures.pixels,
    picture_shape=pictures.shape,
)

FAMILY = Family(
    name="internvl",
    names=frozenset({"internvl", "InternVLForConditionalGeneration"}),
    config=InternVLConfig,
    model=InternVL,
    name_table=name_table,
    sharding=(
        *DECODER_AXES,
        *TOWER_AXES,
        (r"projector\.mlp\.fc1\.kernel", ("vit_embed", "mlp")),
        (r"projector\.mlp\.fc1\.bias", ("mlp",)),
        (r"projector\.mlp\.fc2\.kernel", ("mlp", "embed")),
    ),
    settings={"released": _WAY, "transformers": _WAY},
    templates={
        "internvl": PromptTemplate(
            "<|im_start|>user\n", "\n{question}<|im_end|>\n<|im_start|>assistant\n", between="\n"
        )
    },
    connection="shuffled",
    kind="an InternVL model",
    telltales=("multi_modal_projector.layer_norm.",),
    paper="2504.10479",
    checkpoints=("OpenGVLab/InternVL3-8B-hf", "OpenGVLab/InternVL3_5-8B-HF"),
    representative="internvl3_5-8b",
)
