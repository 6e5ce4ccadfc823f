"""Tensor names of Qwen3.5."""

import dataclasses

from jvidprune.models.checkpoint.names import NameTable, Rule, Split, affine, feed_rules, norm
from jvidprune.models.qwen3_5.config import Qwen35Config
from jvidprune.models.qwen3_vl.params import name_table as dense_table

_LAYER, _TO = "model.layers.{L}", "lm.linear"
_MIXER = f"{_LAYER}.linear_attn"
_DROPPED = (r"(model\.)?mtp\..*",)
"""Layers that predict several tokens at once, which nothing here runs."""


def name_table(config: Qwen35Config) -> NameTable:
    """The names of the tensors of one model: Qwen3-VL's, those of its layers once for each kind of layer."""
    table, delta = dense_table(config), config.text.delta
    assert delta is not None
    linear = tuple(layer for layer in range(config.text.layers) if layer not in delta.attending)
    rules = [
        dataclasses.replace(rule, layers=delta.attending) if rule.target.startswith("lm.layers.") else rule
        for rule in table.rules
    ]
    own = [*feed_rules(_LAYER, _TO), *norm(f"{_MIXER}.norm", f"{_TO}.delta.norm")]
    for part in "qkv":
        own += affine(f"{_MIXER}.{part}_proj", f"{_TO}.delta.{part}", bias=False)
        own.append(Rule(f"{_MIXER}.{part}_conv1d.weight", f"{_TO}.delta.taps_{part}", "taps"))
    for part in "zba":
        own += affine(f"{_MIXER}.in_proj_{part}", f"{_TO}.delta.{part}", bias=False)
    own += affine(f"{_MIXER}.out_proj", f"{_TO}.delta.o", bias=False)
    own += [Rule(f"{_MIXER}.A_log", f"{_TO}.delta.a_log"), Rule(f"{_MIXER}.dt_bias", f"{_TO}.delta.dt_bias")]
    rules += [dataclasses.replace(rule, layers=linear) for rule in own]
    rows = tuple(zip("qkv", delta.channels, strict=True))
    splits = (
        Split(f"{_MIXER}.in_proj_qkv.weight", tuple((f"{_MIXER}.{part}_proj.weight", count) for part, count in rows)),
        Split(f"{_MIXER}.conv1d.weight", tuple((f"{_MIXER}.{part}_conv1d.weight", count) for part, count in rows)),
    )
    return dataclasses.replace(table, rules=tuple(rules), splits=splits, dropped=(*table.dropped, *_DROPPED))
