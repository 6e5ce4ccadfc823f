"""Reads the config.json of a Qwen-VL checkpoint: one reader, and a table of what differs between the families."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.layers import check_activation
from jvidprune.models.qwen.model import token_ids
from jvidprune.models.qwen.tower import QwenVisionConfig


class QwenTable(NamedTuple):
    """One family.

    Attributes:
      title: for messages.
      text, vision: the class defaults of transformers, for keys a config.json leaves out; those of the published models
        differ. A vision key that is not here does not exist in the family.
      qk_norm: RMSNorm on every query and key head.
      interleaved: rotary sections alternate instead of standing one behind the other, whatever config.json says.
      sections: rotary sections by default; None where config.json must give them.
      rms: the tower has RMSNorms, else LayerNorms.
      partial: share of a head's channels that turn, by default.
    """

    title: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    qk_norm: bool
    interleaved: bool
    sections: tuple[int, int, int] | None
    rms: bool
    partial: float = 1.0


def read_config(raw: Mapping[str, Any], table: QwenTable) -> dict[str, Any]:
    """The fields of a `QwenVLConfig` from a flat (published Qwen2.5-VL) or nested config.json, both rope layouts.

    Raises:
      JvidpruneError: no rotary sections, a position table that is no square, impossible DeepStack levels, or an option
        this port does not have.
    """
    given = {key: value for key, value in raw.get("text_config", raw).items() if value is not None}
    text = DecoderConfig.from_hf({**table.text, **given}, qk_norm=table.qk_norm)
    sections = text.rope.sections or table.sections
    if sections is None:
        raise JvidpruneError(f"config.json of a {table.title} model must give mrope_section in its rope settings.")
    partial = table.partial if table.partial == 1 else _partial(given, table.partial)
    rope = dataclasses.replace(text.rope, interleaved=table.interleaved, sections=sections, partial=partial)
    rope.axis_of(text.head_dim)
    found = dict(raw.get("vision_config") or {})
    sizes = {key: found.get(key, default) for key, default in table.vision.items()}
    sizes["in_channels"] = found.get("in_chans", sizes["in_channels"])
    vision = QwenVisionConfig(
        width=sizes["hidden_size"],
        mlp=sizes["intermediate_size"],
        layers=sizes["depth"],
        heads=sizes["num_heads"],
        out=sizes["out_hidden_size"],
        patch_size=sizes["patch_size"],
        rms=table.rms,
        activation=check_activation(sizes["hidden_act"]),
        merge=sizes["spatial_merge_size"],
        pair=sizes["temporal_patch_size"],
        channels=sizes["in_channels"],
        window=sizes.get("window_size", 0) // sizes["spatial_merge_size"] // sizes["patch_size"],
        full_blocks=tuple(sizes.get("fullatt_block_indexes", ())),
        table_side=_side(sizes.get("num_position_embeddings", 0)),
        taps=_taps(sizes, text.layers),
    )
    return {
        "vision": vision,
        "text": dataclasses.replace(text, rope=rope),
        "tokens_per_second": sizes.get("tokens_per_second", 0.0),
        **token_ids(raw),
    }


def _partial(text: Mapping[str, Any], default: float) -> float:
    """Share of a head's channels that turn, from either rope layout."""
    places = (text.get("rope_parameters") or {}, text.get("rope_scaling") or {}, text)
    value = next((found for place in places if (found := place.get("partial_rotary_factor")) is not None), default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise JvidpruneError(f"config.json gives partial_rotary_factor = {quoted(value)}, which must be in (0, 1].")
    return float(value)


def _side(positions: int) -> int:
    side = math.isqrt(positions)
    if side**2 != positions:
        raise JvidpruneError(f"num_position_embeddings {positions} is no square number.")
    return side


def _taps(sizes: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    taps = tuple(sizes.get("deepstack_visual_indexes", ()))
    if list(taps) != sorted(set(taps)) or not all(0 <= tap < sizes["depth"] for tap in taps):
        raise JvidpruneError(f"deepstack_visual_indexes {list(taps)} must be increasing blocks below {sizes['depth']}.")
    if len(taps) > layers:
        raise JvidpruneError(f"{len(taps)} DeepStack levels need as many layers, the model has {layers}.")
    return taps


_MOST = 1 << 16


def read_counts(text: Mapping[str, Any], defaults: Mapping[str, int], least: Mapping[str, int]) -> tuple[int, ...]:
    """Whole numbers of a text config, in the order of `defaults`.

    Args:
      text: the config without entries of null.
      defaults: name to the number where the config has none.
      least: the lowest number allowed, 1 for names that are not listed.

    Raises:
      JvidpruneError: a value that is no whole number from its lowest to 65,536.
    """
    found = {name: text.get(name, default) for name, default in defaults.items()}
    for name, value in found.items():
        low = least.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= _MOST:
            raise JvidpruneError(f"config.json gives {name} = {quoted(value)}, which must be {low} to {_MOST}.")
    return tuple(found.values())
