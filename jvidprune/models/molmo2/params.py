"""Tensor names of Molmo2: the released ones are renamed to those of transformers' class, then mapped to modules."""

from jvidprune.models.checkpoint.names import Join, NameTable, Rule, Split, affine, decoder_rules, norm
from jvidprune.models.molmo2.config import Molmo2Config

_TOWER, _ADAPTER, _TEXT = "model.vision_tower", "model.multi_modal_projector", "model.language_model"

SCORER = f"{_TOWER}.transformer.temporal_token_scorer"
"""Canonical prefix of the STTS scorer (arXiv 2603.18004), which Molmo2-4B-Lite holds inside its tower: below it
`patch_token_pooler.{wq,wk,wv,wo}` and `mlp.{w1,w2,w3}`, weights and biases. The model itself does not read them."""

RENAMES: tuple[tuple[str, str], ...] = (
    # A model saved without its head, or held under another prefix.
    (r"^(?:model\.)*(?=(?:vision_tower|multi_modal_projector|language_model|vision_backbone|transformer)\.)", "model."),
    (r"^(?:model\.)*lm_head\.", "lm_head."),
    (r"^model\.vision_backbone\.image_vit\.transformer\.resblocks\.", f"{_TOWER}.layers."),
    (r"^model\.vision_backbone\.image_vit\.", f"{_TOWER}."),
    (r"^model\.vision_backbone\.", f"{_ADAPTER}."),
    (r"(?<=\.)attention\.w([qkvo])(?=\.)", r"self_attn.\1_proj"),
    (r"(?<=image_pooling_2d)\.w([qkvo])(?=\.)", r".\1_proj"),
    (r"(?<=\.)feed_forward\.w([12])(?=\.)", r"mlp.fc\1"),
    (r"(?<=\.)attention_norm(?=\.)", "layer_norm1"),
    (r"(?<=\.)ffn_norm(?=\.)", "layer_norm2"),
    (r"(?<=image_projector)\.w1(?=\.)", ".gate_proj"),
    (r"(?<=image_projector)\.w2(?=\.)", ".down_proj"),
    (r"(?<=image_projector)\.w3(?=\.)", ".up_proj"),
    (r"^model\.transformer\.ln_f\.", f"{_TEXT}.norm."),
    (r"^model\.transformer\.blocks\.", f"{_TEXT}.layers."),
    (r"^model\.transformer\.", f"{_TEXT}."),
    (r"(?<=\.)attn_norm(?=\.)", "input_layernorm"),
    (r"(?<=\.)ff_norm(?=\.)", "post_attention_layernorm"),
    (r"(?<=\.self_attn)\.attn_out(?=\.)", ".o_proj"),
    (r"(?<=\.mlp)\.ff_out(?=\.)", ".down_proj"),
)
"""Released -> transformers' class."""

_DROPPED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", SCORER.replace(".", r"\.") + r"\..*")


def name_table(config: Molmo2Config) -> NameTable:
    """The names of the tensors of one model."""
    block, to, text = f"{_TOWER}.layers.{{L}}", "vision.blocks", config.text
    rules = [
        *affine(f"{_TOWER}.patch_embedding", "vision.patch_embed"),
        Rule(f"{_TOWER}.positional_embedding", "vision.pos_embed"),
    ]
    for i in (1, 2):
        rules += norm(f"{block}.layer_norm{i}", f"{to}.norm{i}", bias=True)
        rules += affine(f"{block}.mlp.fc{i}", f"{to}.mlp.fc{i}")
    for part in "qkvo":
        rules += affine(f"{block}.self_attn.{part}_proj", f"{to}.attn.{part}")
        rules += affine(f"{_ADAPTER}.image_pooling_2d.{part}_proj", f"connector.{part}")
    for part in ("gate", "up", "down"):
        rules += affine(f"{_ADAPTER}.image_projector.{part}_proj", f"connector.mlp.{part}", bias=False)
    rules += decoder_rules(_TEXT, "lm_head", qkv_bias=text.qkv_bias, qk_norm=text.qk_norm, tied=text.tied)
    # Blocks that a config declares behind the deepest one that is read never run.
    dropped = [*_DROPPED]
    if behind := range(config.vision.layers, config.stored_blocks):
        numbers = "|".join(map(str, behind))
        dropped.append(rf"model\.vision_tower\.layers\.({numbers})\..*")
    return NameTable(RENAMES, tuple(dropped), tuple(rules), _splits(config), _JOINS)


_JOINS = (Join(f"{_TEXT}.embed_tokens.weight", (f"{_TEXT}.wte.embedding", f"{_TEXT}.wte.new_embedding")),)
"""The embeddings of the base vocabulary and of the ids behind it."""


def _splits(config: Molmo2Config) -> tuple[Split, ...]:
    """Projections that released checkpoints store in one tensor; of the MLP's the gate is the second half."""
    text, layer = config.text, f"{_TEXT}.layers.{{L}}"
    q, kv, attn = text.heads * text.head_dim, text.kv_heads * text.head_dim, f"{layer}.self_attn"
    rows = (("q", q), ("k", kv), ("v", kv))
    mlp = ((f"{layer}.mlp.up_proj.weight", text.mlp), (f"{layer}.mlp.gate_proj.weight", text.mlp))
    return (
        *(
            Split(f"{attn}.att_proj.{kind}", tuple((f"{attn}.{part}_proj.{kind}", count) for part, count in rows))
            for kind in ("weight", "bias")
        ),
        Split(f"{layer}.mlp.ff_proj.weight", mlp),
    )
