"""Molmo2 as a family."""

import dataclasses
import functools

from jvidprune.models.family import Family
from jvidprune.models.molmo2 import pictures
from jvidprune.models.molmo2.config import TILES, Molmo2Config
from jvidprune.models.molmo2.modules import Molmo2
from jvidprune.models.molmo2.params import name_table
from jvidprune.models.settings import FamilySettings, squashed
from jvidprune.models.templates import PromptTemplate
from jvidprune.parallel import DECODER_AXES, TOWER_AXES


def _tiled(config: Molmo2Config) -> Molmo2Config:
    """With patches as they leave the tower, to be pooled over tiles."""
    return dataclasses.replace(config, connector=dataclasses.replace(config.connector, pool=TILES))


_RELEASED = FamilySettings(
    "molmo2",
    "no_token",
    "all",
    128,
    "molmo2",
    functools.partial(squashed, filter="bilinear"),
    prompt="frames",
    writes_times=True,
    own_chat=True,
    begins=True,
    pictures=True,
    picture_pixels=pictures.pixels,
    picture_shape=pictures.shape,
    picture_maps=pictures.maps,
    picture_config=_tiled,
)

FAMILY = Family(
    name="molmo2",
    names=frozenset({"molmo2", "Molmo2ForConditionalGeneration"}),
    config=Molmo2Config,
    model=Molmo2,
    name_table=name_table,
    sharding=(
        *DECODER_AXES,
        *TOWER_AXES,
        (r"connector\.[qkv]\.kernel", ("vit_embed", "vit_heads")),
        (r"connector\.[qkv]\.bias", ("vit_heads",)),
        (r"connector\.o\.kernel", ("vit_heads", "vit_embed")),
        (r"connector\.mlp\.(gate|up)\.kernel", ("vit_embed", "mlp")),
        (r"connector\.mlp\.down\.kernel", ("mlp", "embed")),
    ),
    settings={"released": _RELEASED, "transformers": dataclasses.replace(_RELEASED, rule="hf_molmo2")},
    # The video stands before the first turn.
    templates={"molmo2": PromptTemplate("", "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")},
    connection="connector",
    bidirectional=True,
    kind="a Molmo2 model",
    telltales=("vision_backbone.", "multi_modal_projector.image_pooling_2d."),
    own_sampling={},
    paper="2601.10611",
    checkpoints=("allenai/Molmo2-4B", "allenai/Molmo2-8B", "allenai/Molmo2-O-7B"),
    representative="molmo2-8b",
)
