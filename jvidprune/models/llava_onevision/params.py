"""Tensor names of LLaVA-OneVision: every variant is renamed to the published llava-hf names, then mapped to modules."""

from jvidprune.models.checkpoint.names import NameTable, Rule, affine, decoder_rules, siglip_rules
from jvidprune.models.llava_onevision.config import LlavaOnevisionConfig

_TOWER = "vision_tower.vision_model"

RENAMES: tuple[tuple[str, str], ...] = (
    # model.vision_tower.vision_tower.vision_model.x, vision_tower.x, vision_model.x, ... -> vision_tower.vision_model.x
    (r"^(model\.)?(vision_tower\.)+(vision_model\.)?", f"{_TOWER}."),
    (r"^vision_model\.", f"{_TOWER}."),
    (r"^(model\.)?(multi_modal_projector|mm_projector)\.", "multi_modal_projector."),
    (r"^multi_modal_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^multi_modal_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.image_newline$", "image_newline"),
    (
        r"^(language_model\.model\.|model\.language_model\.(model\.)?|model\.)(?=(embed_tokens|layers|norm)\.)",
        "language_model.model.",
    ),
    (r"^(model\.)?(language_model\.)?lm_head\.", "language_model.lm_head."),
)
"""Published, re-saved by transformers 4.52 and 5, lmms-lab, and the bare SigLIP checkpoint -> published."""

HEAD_TENSORS = r"vision_tower\.vision_model\.(head|post_layernorm)\..*"
"""What a pooling head taken from the original SigLIP consists of."""

_DROPPED: tuple[str, ...] = (
    r".*\.rotary_emb\.inv_freq",
    r".*\.embeddings\.position_ids",
)


def name_table(config: LlavaOnevisionConfig) -> NameTable:
    """The names of the tensors of one model."""
    dropped = list(_DROPPED)
    if not config.vision.pooling_head:
        # In every published checkpoint, read by nothing: the feature is the last block's output before this norm.
        dropped.append(r"vision_tower\.vision_model\.post_layernorm\..*")
    dropped += [
        rf"vision_tower\.vision_model\.encoder\.layers\.{block}\..*"
        for block in range(config.vision.layers, config.stored_blocks)
    ]
    text = config.text
    return NameTable(
        RENAMES,
        tuple(dropped),
        (
            *siglip_rules(_TOWER, pooling_head=config.vision.pooling_head),
            *affine("multi_modal_projector.linear_1", "projector.fc1"),
            *affine("multi_modal_projector.linear_2", "projector.fc2"),
            Rule("image_newline", "image_newline"),
            *decoder_rules(
                "language_model.model",
                "language_model.lm_head",
                qkv_bias=text.qkv_bias,
                qk_norm=text.qk_norm,
                tied=text.tied,
            ),
        ),
    )
