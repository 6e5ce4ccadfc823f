"""Tensor names of VideoLLaMA3 as transformers' class saves them; queries, keys and values are put side by side."""

from jvidprune.models.checkpoint.names import Join, NameTable, Rule, affine, decoder_rules, norm
from jvidprune.models.video_llama_3.config import VideoLlama3Config

_TOWER, _PROJECTOR, _TEXT = "model.vision_model", "model.projector.readout", "model.language_model"

RENAMES: tuple[tuple[str, str], ...] = (
    # A model saved without its head, or held under another prefix.
    (r"^(?:model\.)*(?=(?:vision_model|projector|language_model)\.)", "model."),
    (r"^model\.language_model\.model\.", f"{_TEXT}."),
    (r"^(?:model\.)*(?:language_model\.)?lm_head\.", "lm_head."),
)
"""Other prefixes -> those of the class."""

_DROPPED: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq", r".*\.rotary_pos_emb\.inv_freq")


def name_table(config: VideoLlama3Config) -> NameTable:
    """The names of the tensors of one model."""
    block, to, text = f"{_TOWER}.encoder.layers.{{L}}", "vision.blocks", config.text
    rules = [
        Rule(f"{_TOWER}.embeddings.patch_embedding.weight", "vision.patch_embed.kernel", "conv"),
        Rule(f"{_TOWER}.embeddings.patch_embedding.bias", "vision.patch_embed.bias"),
        *norm(f"{_TOWER}.post_layernorm", "vision.post_norm", bias=True),
        *affine(f"{_PROJECTOR}.0", "vision.projector.fc1"),
        *affine(f"{_PROJECTOR}.2", "vision.projector.fc2"),
        *affine(f"{block}.self_attn.qkv_proj", f"{to}.attn.qkv"),
        *affine(f"{block}.self_attn.out_proj", f"{to}.attn.o"),
    ]
    for i in (1, 2):
        rules += norm(f"{block}.layer_norm{i}", f"{to}.norm{i}", bias=True)
        rules += affine(f"{block}.mlp.fc{i}", f"{to}.mlp.fc{i}")
    rules += decoder_rules(_TEXT, "lm_head", qkv_bias=text.qkv_bias, qk_norm=text.qk_norm, tied=text.tied)
    return NameTable(RENAMES, _DROPPED, tuple(rules), joins=_joins(config.vision.layers))


def _joins(layers: int) -> tuple[Join, ...]:
    """The projections that the tower here holds in one parameter."""
    found = []
    for layer in range(layers):
        attention = f"{_TOWER}.encoder.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            sources = tuple(f"{attention}.{part}_proj.{kind}" for part in "qkv")
            found.append(Join(f"{attention}.qkv_proj.{kind}", sources))
    return tuple(found)
