"""A model family as one object, and the registry of families.

Everything that the package asks about a family stands in its `Family`, which the family's folder exports as `FAMILY`.
Models never import `llm`: what a family says of prompts is plain data here (its settings in each convention, its
templates, the name of a way of writing prompts), which `llm` reads. The ways are `llm.prompts.registry.BUILDERS`, a
table by name: they serve several families and need reduced videos, which models do not know.

A family of one's own is a `Family` given to `register`; one of this package is a folder and a name in
`jvidprune.backbones`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from jvidprune import backbones
from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.names import NameTable
from jvidprune.models.settings import FamilySettings
from jvidprune.models.templates import PromptTemplate
from jvidprune.parallel import ShardingTable

Connection = Literal["projector", "mergers", "connector", "pooled", "shuffled"]
"""What stands between a tower and a language model: LLaVA's projector behind SigLIP, Qwen's mergers behind its own
tower, Molmo2's attention over windows behind SigLIP 2, VideoLLaMA3's projector behind means over the patches of a
token, its tower reading frames of any size like Qwen's; InternVL's projector behind joined patches."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One model family.

    Attributes:
      name: as in `config.family`.
      names: model types and architectures of a config.json that describes this family.
      config: frozen, hashable dataclass: `from_hf(config.json)`, `with_tensors(names)`, `units`, `provides`, `vision`
        and `text`.
      model: class of the nnx module, made as `model(config, dtype=...)`; a `models.base.VideoModel` with
        `encode(pixels, needs)`.
      name_table: config to the names of the checkpoint's tensors.
      sharding: logical axes of the parameters, see `parallel.ShardingTable`.
      settings: what it needs around the model, by convention (`llm.conventions`); "released" is always there.
      lmms_lab: the same for checkpoints in the format of LLaVA-NeXT, where the family has such.
      templates: prompt templates that its settings name.
      connection: see `Connection`.
      bidirectional: visual tokens see each other in the language model, whatever their order.
      matches: whether a config.json with one of `names` is of this family, where names alone do not tell.
      kind: what its checkpoints are called in messages.
      telltales: beginnings of tensor names that only checkpoints of this kind have; none leaves them unchecked.
      head_tensors: pattern of the tensors of SigLIP's pooling head, where one can be put next to its tower.
      own_sampling: settings of a video processor that samples frames and does not say how; None where it must say.
      paper: arXiv id.
      checkpoints: hub ids of published ones.
      representative: published checkpoint that speaks for the family, a name of `checkpoint.published`.
      presets: of a family from outside, settings of reducers on it by registry name, as their `PRESETS` have them for
        the families of this package.
    """

    name: str
    names: frozenset[str]
    config: Any
    model: Callable[..., Any]
    name_table: Callable[[Any], NameTable]
    sharding: ShardingTable
    settings: Mapping[str, FamilySettings]
    lmms_lab: Mapping[str, FamilySettings] = dataclasses.field(default_factory=lambda: _NOTHING)
    templates: Mapping[str, PromptTemplate] = dataclasses.field(default_factory=lambda: _NOTHING)
    connection: Connection = "projector"
    bidirectional: bool = False
    matches: Callable[[Mapping[str, Any]], bool] | None = None
    kind: str = "another kind of model"
    telltales: tuple[str, ...] = ()
    head_tensors: str | None = None
    own_sampling: Mapping[str, float] | None = None
    paper: str = "-"
    checkpoints: tuple[str, ...] = ()
    representative: str | None = None
    presets: backbones.Presets = dataclasses.field(default_factory=lambda: _NOTHING)

    def describes(self, raw: Mapping[str, Any]) -> bool:
        """Whether a config.json describes a model of this family."""
        return bool(self.names & named(raw)) and (self.matches is None or self.matches(raw))


_FOLDERS: dict[str, str] = {name: f"jvidprune.models.{name}" for name in backbones.NAMES}
"""The families of this package; the first that describes a config.json loads it."""

_REGISTERED: dict[str, Family] = {}


def names() -> tuple[str, ...]:
    """All families, those of this package first."""
    return (*_FOLDERS, *_REGISTERED)


def get(name: str) -> Family:
    """A family by name.

    Raises:
      JvidpruneError: unknown name.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _FOLDERS:
        raise JvidpruneError(f"unknown model family {name!r}; known: {', '.join(names())}.")
    return importlib.import_module(_FOLDERS[name]).FAMILY


def families() -> tuple[Family, ...]:
    """All of them, in the order of `names`."""
    return tuple(get(name) for name in names())


def listing() -> list[dict[str, str]]:
    """One row a family that checkpoints load for: name, paper, published checkpoints."""
    return [
        {"family": one.name, "paper": one.paper, "checkpoints": ", ".join(one.checkpoints) or "-"} for one in families()
    ]


def register(family: Family) -> None:
    """Makes a family of one's own known: its checkpoints load and can be asked about videos like any other.

    Raises:
      JvidpruneError: another family has its name, or it has no settings for "released".
    """
    if family.name in _FOLDERS or _REGISTERED.get(family.name, family) is not family:
        raise JvidpruneError(f"there is a model family {family.name!r} already; choose another name.")
    if "released" not in family.settings:
        raise JvidpruneError(f"the family {family.name} has no settings for the convention released.")
    _REGISTERED[family.name] = family
    backbones.add(family.name, family.presets)


LMMS_LAB = frozenset({"llava_qwen", "LlavaQwenForCausalLM"})
"""What a config.json in the format of LLaVA-NeXT names, as lmms-lab publishes its checkpoints of several families."""


def is_lmms_lab(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is in the format of LLaVA-NeXT."""
    return bool(LMMS_LAB & named(raw))


def named(raw: Mapping[str, Any]) -> set[str]:
    """Model type and architectures that a config.json names."""
    listed = raw.get("architectures")
    return {str(raw.get("model_type", "")), *map(str, listed if isinstance(listed, list) else ())}
