"""Tensor names of InternVL as transformers' class saves them."""

from jvidprune.models.checkpoint.names import NameTable, Rule, affine, decoder_rules, norm
from jvidprune.models.internvl.config import InternVLConfig

_TOWER, _PROJECTOR, _TEXT = "model.vision_tower", "model.multi_modal_projector", "model.language_model"

RENAMES: tuple[tuple[str, str], ...] = (
    # A model saved by transformers before 4.52, without its head, or held under another prefix.
    (r"^(?:model\.)*(?=(?:vision_tower|multi_modal_projector|language_model)\.)", "model."),
    (r"^model\.language_model\.model\.", f"{_TEXT}."),
    (r"^(?:model\.)*(?:language_model\.)?lm_head\.", "lm_head."),
)
"""Other prefixes -> those of the class."""

_DROPPED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", r"model\.vision_tower\.embeddings\.mask_token")


def name_table(config: InternVLConfig) -> NameTable:
    """The names of the tensors of one model."""
    vision, text = config.vision, config.text
    block, to = f"{_TOWER}.encoder.layer.{{L}}", "vision.blocks"
    patches = f"{_TOWER}.embeddings.patch_embeddings.projection"
    rules = [
        Rule(f"{patches}.weight", "vision.patch_embed.kernel", "conv"),
        Rule(f"{patches}.bias", "vision.patch_embed.bias"),
        Rule(f"{_TOWER}.embeddings.cls_token", "vision.class_token"),
        Rule(f"{_TOWER}.embeddings.position_embeddings", "vision.pos_embed"),
        *affine(f"{block}.attention.projection_layer", f"{to}.attn.o"),
        *norm(f"{_PROJECTOR}.layer_norm", "projector.norm", bias=True),
    ]
    for part in "qkv":
        rules += affine(f"{block}.attention.{part}_proj", f"{to}.attn.{part}", bias=vision.qkv_bias)
    for part in "qk" * vision.qk_norm:
        rules += norm(f"{block}.attention.{part}_norm", f"{to}.attn.{part}_norm")
    for i, where in ((1, "before"), (2, "after")):
        rules += norm(f"{block}.layernorm_{where}", f"{to}.norm{i}", bias=not vision.rms)
        rules += affine(f"{block}.mlp.fc{i}", f"{to}.mlp.fc{i}")
        rules += [Rule(f"{block}.lambda_{i}", f"{to}.scale{i}")]
        rules += affine(f"{_PROJECTOR}.linear_{i}", f"projector.mlp.fc{i}")
    if vision.final_norm:
        rules += norm(f"{_TOWER}.layernorm", "vision.post_norm", bias=True)
    rules += decoder_rules(_TEXT, "lm_head", qkv_bias=text.qkv_bias, qk_norm=text.qk_norm, tied=text.tied)
    return NameTable(RENAMES, _DROPPED, tuple(rules))
