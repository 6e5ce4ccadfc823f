"""Checkpoints to models: one call for every family, from a local folder or a hub id."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jvidprune.errors import JvidpruneError, quoted, reason
from jvidprune.models import family as families
from jvidprune.models.checkpoint.dtypes import declared_dtype, is_auto, read_dtype, stored_dtype
from jvidprune.models.checkpoint.folder import Checkpoint, read_json, unwrapped
from jvidprune.models.checkpoint.formats import check_adapter, check_format
from jvidprune.models.checkpoint.hub import resolve_folder
from jvidprune.models.checkpoint.names import NameTable, load_parameters
from jvidprune.models.checkpoint.sizes import check_sections, check_sizes
from jvidprune.models.family import Family
from jvidprune.models.fused import AttentionKind
from jvidprune.models.quantised import Quantise, check_quantise
from jvidprune.parallel import check_mesh


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
      family: a name of `models.family.names`.
      config: frozen, hashable dataclass of the family.
      model: the nnx module.
      folder: where tokenizer and preprocessing files lie.
      pooling_head: folder of another checkpoint that the tower's pooling head was read from.
    """

    family: str
    config: Any
    model: Any
    folder: Path
    pooling_head: Path | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """Type of the parameters that are not quantised, and of activations."""
        return self.model.lm.dtype

    @property
    def quantise(self) -> Quantise | None:
        """How the matrices of the language model are held, where not in that type."""
        return self.config.text.quantise


def family_of(config: Mapping[str, Any]) -> str:
    """The family a config.json describes.

    Raises:
      JvidpruneError: unknown architecture.
    """
    for family in families.families():
        if family.describes(config):
            return family.name
    kinds = sorted(families.named(config) - {""})
    kind = quoted(", ".join(kinds), 200) or "none named"
    raise JvidpruneError(f"unknown architecture ({kind}); supported: {', '.join(families.names())}.")


def described(raw: Mapping[str, Any]) -> tuple[str, Any]:
    """Family and config that a config.json describes.

    Raises:
      JvidpruneError: an unknown architecture, a value that no model has, or an option that is not supported.
    """
    family = family_of(raw)
    check_sections(raw)
    try:
        config = families.get(family).config.from_hf(raw)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, JvidpruneError):
            raise
        raise JvidpruneError(f"config.json does not describe a {family} model: {reason(error)}.") from error
    check_sizes(config)
    return family, config


def check_supported(folder: Path, source: str | Path) -> None:
    """Refuses, from the JSON files of a folder alone, what cannot be loaded.

    Args:
      folder: of the checkpoint; its weights need not be there.
      source: what the user calls it.

    Raises:
      JvidpruneError: no config.json, an unknown architecture, a quantised checkpoint, an adapter, a value that no model
        has, or an option that is not supported.
    """
    check_adapter(folder, str(source))
    if not (folder / "config.json").exists():
        gguf = " (GGUF files cannot be read)" if any(folder.glob("*.gguf")) else ""
        raise JvidpruneError(f"{source} has no config.json{gguf}.")
    raw = read_json(folder / "config.json")
    try:
        family_of(raw)
    except JvidpruneError as error:
        raise JvidpruneError(f"{source} cannot be loaded: {error}") from None
    check_format(folder, source)
    described(raw)


def read_config(source: str | Path, revision: str | None = None) -> tuple[str, Any, Path]:
    """Family, config and folder of a checkpoint, from its small files alone: no weights of a hub id are fetched.

    Raises:
      JvidpruneError: no such checkpoint, or one that cannot be loaded, see `check_supported`.
    """
    folder = resolve_folder(source, revision, weights=False, check=lambda folder: check_supported(folder, source))
    return *described(read_json(folder / "config.json")), folder


def planned_dtype(folder: Path, dtype: Any) -> jnp.dtype:
    """The type a checkpoint would be loaded in; where only its tensors could tell and they are not there, bfloat16.

    Args:
      folder: of the checkpoint.
      dtype: as for `load_model`.

    Raises:
      JvidpruneError: a type that models do not run in, or broken files.
    """
    if not is_auto(dtype):
        return read_dtype(dtype)
    if (found := declared_dtype(read_json(folder / "config.json"))) is not None:
        return found
    return stored_dtype(Checkpoint(folder, str)) if any(folder.glob("*.safetensors")) else jnp.dtype("bfloat16")


def name_table(family: str, config: Any) -> NameTable:
    """The tensor names of a family's model.

    Args:
      family: a name of `models.family.names`.
      config: of the family.
    """
    return families.get(family).name_table(config)


def load_model(
    source: str | Path,
    *,
    dtype: Any = jnp.bfloat16,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    revision: str | None = None,
    pooling_head: str | Path | None = None,
    attention: AttentionKind = "auto",
    quantise: Quantise | None = None,
) -> LoadedModel:
    """Loads a checkpoint, safetensors only, shard by shard onto a device or a mesh.

    Args:
      source: a folder, or a hub id such as "llava-hf/llava-onevision-qwen2-0.5b-ov-hf".
      dtype: of parameters and activations: float32, bfloat16, float16, or "auto" for what config.json names, else what
        most numbers are stored in.
      mesh: where the parameters go, see `jvidprune.parallel`; None means the default device.
      progress: called as (bytes done, bytes in all, parameter) after each parameter.
      revision: of a hub id.
      pooling_head: folder or hub id of the original SigLIP, whose attention-pooling head is put next to a LLaVA tower
        (LLaVA checkpoints lack it, FastVID needs it); None uses what the checkpoint itself holds.
      attention: which code computes attention in tower and language model.
      quantise: hold the matrices of the language model's layers in one byte each, "int8" or "fp8", see
        `models.quantised`; each layer's are quantised as they are read. Needs the extra `quantise`.

    Raises:
      JvidpruneError: unknown architecture, a quantised checkpoint or an adapter, pickles, missing or broken files, a
        mesh that cuts heads, an unknown way to quantise or no qwix for it, or tensors that do not fit, all of them in
        one message.
    """
    check_quantise(quantise)
    dtype = dtype if is_auto(dtype) else read_dtype(dtype)
    folder = resolve_folder(source, revision, check=lambda folder: check_supported(folder, source))
    raw = read_json(folder / "config.json")
    name, config = described(raw)
    family = families.get(name)
    declared = declared_dtype(raw) if is_auto(dtype) else None
    table = family.name_table(config)
    checkpoint = Checkpoint(folder, table.canonical)
    head = None
    if pooling_head is not None:
        head = resolve_folder(pooling_head, check=lambda folder: check_format(folder, pooling_head))
    if head is not None:
        if family.head_tensors is None:
            raise JvidpruneError(f"{name} has no SigLIP tower that a pooling head could be put next to.")
        checkpoint.add(Checkpoint(head, table.canonical), family.head_tensors)
    if is_auto(dtype):
        dtype = stored_dtype(checkpoint) if declared is None else declared
    table.arrange(checkpoint)
    config = config.with_tensors(checkpoint.names)
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, attention=attention),
        text=dataclasses.replace(config.text, attention=attention, quantise=quantise),
    )
    table = family.name_table(config)
    _check_family(family, checkpoint)
    if mesh is not None:
        check_mesh(name, config.units, mesh)
    model = load_parameters(
        lambda: family.model(config, dtype=dtype),
        table,
        checkpoint,
        dtype=dtype,
        sharding=family.sharding,
        mesh=mesh,
        units=config.units,
        progress=progress,
    )
    return LoadedModel(name, config, model, folder, head)


def _check_family(family: Family, checkpoint: Checkpoint) -> None:
    """Says so when config and weights belong to different families, instead of listing every tensor as a problem."""
    if not family.telltales:
        return
    stored = [unwrapped(checkpoint.stored(name)).removeprefix("model.") for name in checkpoint.names]
    kinds = {prefix: one.kind for one in families.families() for prefix in one.telltales}
    told = {prefix: kind for prefix, kind in kinds.items() if any(name.startswith(prefix) for name in stored)}
    # transformers names Molmo2's adapter as it names LLaVA's projector: what the longer name says goes.
    outdone = {told[short] for short in told for long in told if long != short and long.startswith(short)}
    found = set(told.values()) - outdone
    if family.kind not in found:
        raise JvidpruneError(
            f"{checkpoint.folder} says it is {family.name} in config.json, but its tensors are those of "
            f"{next(iter(found), 'another kind of model')}."
        )
