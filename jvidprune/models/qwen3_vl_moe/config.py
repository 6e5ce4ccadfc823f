"""Sizes and token ids of a Qwen3-VL checkpoint with experts, read from its config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jvidprune.errors import JvidpruneError
from jvidprune.models.qwen.config import read_config, read_counts
from jvidprune.models.qwen3_vl.config import TABLE, Qwen3VLConfig

_TABLE = TABLE._replace(
    title="Qwen3-VL-MoE",
    text=dict(TABLE.text)
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": None,
        "rope_theta": 5e5,
    },
)

_COUNTS = {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408}
"""Defaults of transformers' class; those of the published models differ."""


@dataclasses.dataclass(frozen=True)
class Qwen3VLMoeConfig(Qwen3VLConfig):
    """Everything static about a Qwen3-VL model whose layers have experts."""

    family: ClassVar[str] = "qwen3_vl_moe"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen3VLMoeConfig":
        """Reads a config.json, see `read_config`; every layer has experts, as in the published models.

        Raises:
          JvidpruneError: what `read_config` raises, layers without experts, experts that make no sense, or weights of
            a token's experts that are not normalised.
        """
        text = {key: value for key, value in (raw.get("text_config") or {}).items() if value is not None}
        if text.get("decoder_sparse_step", 1) != 1 or text.get("mlp_only_layers"):
            raise JvidpruneError(
                "decoder_sparse_step and mlp_only_layers leave layers without experts, which is not supported."
            )
        if text.get("norm_topk_prob", True) is not True:
            raise JvidpruneError("norm_topk_prob is not true, but only normalised weights of experts are supported.")
        if "num_local_experts" in text:
            # As transformers 5 saves it.
            text["num_experts"] = text["num_local_experts"]
        experts, active, hidden = read_counts(text, _COUNTS, {})
        if active > experts:
            raise JvidpruneError(f"a token passes {active} experts (num_experts_per_tok), but there are {experts}.")
        fields = read_config(raw, _TABLE)
        fields["text"] = dataclasses.replace(fields["text"], mlp=active * hidden, experts=experts, active=active)
        return cls(**fields)

    @property
    def units(self) -> dict[str, int]:
        """Pieces of the logical axes that sharding must not cut."""
        return super().units | {"experts": self.text.experts}
