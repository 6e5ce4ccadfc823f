"""From checkpoint tensors to parameters: name tables as data, slices straight onto devices."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.folder import Checkpoint
from jvidprune.models.checkpoint.formats import odd_tensors
from jvidprune.models.checkpoint.placing import held_bytes, placed
from jvidprune.parallel import ShardingTable, parameter_sharding

_LISTED = 24
"""Tensors (layers together) that an error names of each kind, all of a model's where only a part is wrong."""

Transform = Literal["copy", "transpose", "conv", "taps"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where one parameter comes from.

    Attributes:
      source: canonical tensor name; `{L}` stands for the layer and means that the parameter is a stack of layers.
      target: module path joined by dots.
      transform: copy; transpose (out, in) -> (in, out); conv (out, ...) -> (prod of the rest, out); taps, of a
        convolution a channel, (out, 1, width) -> (width, out).
      layers: numbers of the layers in the stack; by default 0, 1, ...
    """

    source: str
    target: str
    transform: Transform = "copy"
    layers: tuple[int, ...] | None = None

    def sources(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """Names of the tensors that a parameter of this shape is made of, one a layer of a stack."""
        count = shape[0] if "{L}" in self.source else 1
        layers = range(count) if self.layers is None else self.layers
        return tuple(self.source.replace("{L}", str(layer)) for layer in layers)


@dataclasses.dataclass(frozen=True)
class Split:
    """A tensor that some checkpoints store for several: its rows are those of `parts` in order.

    Attributes:
      source: canonical name; `{L}` stands for the layer.
      parts: (canonical name, rows).
    """

    source: str
    parts: tuple[tuple[str, int], ...]

    def of(self, name: str) -> tuple[tuple[str, int], ...] | None:
        """The parts of the tensor with this canonical name, or None if it is another one."""
        pattern = re.escape(self.source).replace(re.escape("{L}"), r"(\d+)")
        found = re.fullmatch(pattern, name)
        if found is None:
            return None
        layer = found.group(1) if found.groups() else ""
        return tuple((part.replace("{L}", layer), rows) for part, rows in self.parts)


@dataclasses.dataclass(frozen=True)
class Join:
    """Tensors that some checkpoints store apart and that stand below each other in one parameter."""

    target: str
    sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class NameTable:
    """How the tensors of a family are called.

    Attributes:
      renames: (pattern, replacement) applied in order to a stored name until it is canonical.
      dropped: patterns of canonical names that no parameter needs.
      rules: one for each parameter.
      splits: tensors to take apart where a checkpoint has them.
      joins: tensors to put together where a checkpoint has them.
    """

    renames: tuple[tuple[str, str], ...]
    dropped: tuple[str, ...]
    rules: tuple[Rule, ...]
    splits: tuple[Split, ...] = ()
    joins: tuple[Join, ...] = ()

    def canonical(self, name: str) -> str:
        """The canonical name of a stored tensor."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def arrange(self, source: Checkpoint) -> None:
        """Splits and joins the tensors of a checkpoint that are not stored one by one.

        Raises:
          JvidpruneError: rows that do not add up, or a tensor that is there twice.
        """
        for split in self.splits:
            for name in sorted(source.names):
                if parts := split.of(name):
                    source.split(name, parts)
        for join in self.joins:
            if source.names.issuperset(join.sources):
                source.join(join.target, join.sources)

    def pieces(self, name: str, source: Checkpoint) -> tuple[tuple[str, slice], ...]:
        """What a stored tensor consists of: rows of tensors that parameters are made from; by default of itself.

        Args:
          name: canonical name of the stored tensor.
          source: the checkpoint, not arranged.
        """
        for split in self.splits:
            if parts := split.of(name):
                return tuple((part, slice(0, rows)) for part, rows in parts)
        for join in self.joins:
            if name in join.sources and source.names.issuperset(join.sources):
                before = join.sources[: join.sources.index(name)]
                start = sum(source.shape(other)[0] for other in before)
                return ((join.target, slice(start, start + source.shape(name)[0])),)
        return ((name, slice(None)),)

    def is_dropped(self, name: str) -> bool:
        """Whether a canonical name is on the drop list."""
        return any(re.fullmatch(pattern, name) for pattern in self.dropped)


def affine(source: str, target: str, *, bias: bool = True) -> tuple[Rule, ...]:
    """The rules of a linear layer."""
    kernel = Rule(f"{source}.weight", f"{target}.kernel", "transpose")
    return (kernel, Rule(f"{source}.bias", f"{target}.bias")) if bias else (kernel,)


def norm(source: str, target: str, *, bias: bool = False) -> tuple[Rule, ...]:
    """The rules of a norm: weight -> scale, and the bias of a LayerNorm."""
    scale = Rule(f"{source}.weight", f"{target}.scale")
    return (scale, Rule(f"{source}.bias", f"{target}.bias")) if bias else (scale,)


def decoder_rules(
    model: str, head: str, *, qkv_bias: bool, qk_norm: bool, tied: bool, experts: bool = False
) -> tuple[Rule, ...]:
    """The language model's rules, shared by all families.

    Args:
      model: canonical prefix of embedding, layers and final norm.
      head: canonical name of the head without `.weight`.
      qkv_bias: whether q, k and v have biases.
      qk_norm: whether q and k are normalised per head.
      tied: whether there is no head tensor.
      experts: whether layers have experts behind a router in place of one MLP.
    """
    layer, to = f"{model}.layers.{{L}}", "lm.layers"
    rules = [Rule(f"{model}.embed_tokens.weight", "lm.embed.embedding"), *norm(f"{model}.norm", "lm.norm")]
    rules += feed_rules(layer, to, experts=experts)
    for part in "qkvo":
        biased = qkv_bias and part != "o"
        rules += affine(f"{layer}.self_attn.{part}_proj", f"{to}.attn.{part}", bias=biased)
    if qk_norm:
        for part in "qk":
            rules += norm(f"{layer}.self_attn.{part}_norm", f"{to}.attn.{part}_norm")
    return (*rules, *(() if tied else affine(head, "lm.head", bias=False)))


def feed_rules(layer: str, to: str, *, experts: bool = False) -> list[Rule]:
    """Norms and MLP of the language model's layers, whatever stands in front of the MLP.

    Args:
      layer: canonical prefix of a layer, with `{L}`.
      to: module path of the stack.
      experts: see `decoder_rules`.
    """
    rules = [*norm(f"{layer}.input_layernorm", f"{to}.norm1")]
    rules += norm(f"{layer}.post_attention_layernorm", f"{to}.norm2")
    if experts:
        rules += affine(f"{layer}.mlp.gate", f"{to}.mlp.router", bias=False)
        # As published, (experts, in, out); transformers turns them when it loads and saves.
        rules += [Rule(f"{layer}.mlp.experts.{part}_proj", f"{to}.mlp.{part}") for part in ("gate_up", "down")]
    for part in () if experts else ("gate", "up", "down"):
        rules += affine(f"{layer}.mlp.{part}_proj", f"{to}.mlp.{part}", bias=False)
    return rules


def siglip_rules(model: str, *, pooling_head: bool) -> tuple[Rule, ...]:
    """The rules of a SigLIP tower with the canonical prefix `model`."""
    block, to = f"{model}.encoder.layers.{{L}}", "vision.blocks"
    rules = [
        Rule(f"{model}.embeddings.patch_embedding.weight", "vision.patch_embed.kernel", "conv"),
        Rule(f"{model}.embeddings.patch_embedding.bias", "vision.patch_embed.bias"),
        Rule(f"{model}.embeddings.position_embedding.weight", "vision.pos_embed"),
    ]
    for i in (1, 2):
        rules += norm(f"{block}.layer_norm{i}", f"{to}.norm{i}", bias=True)
        rules += affine(f"{block}.mlp.fc{i}", f"{to}.mlp.fc{i}")
    for part, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        rules += affine(f"{block}.self_attn.{name}", f"{to}.attn.{part}")
    if pooling_head:
        head = f"{model}.head"
        rules += [
            *norm(f"{model}.post_layernorm", "vision.head.post_norm", bias=True),
            Rule(f"{head}.probe", "vision.head.probe"),
            Rule(f"{head}.attention.in_proj_weight", "vision.head.qkv.kernel", "transpose"),
            Rule(f"{head}.attention.in_proj_bias", "vision.head.qkv.bias"),
            *affine(f"{head}.attention.out_proj", "vision.head.o"),
            *norm(f"{head}.layernorm", "vision.head.norm", bias=True),
            *affine(f"{head}.mlp.fc1", "vision.head.mlp.fc1"),
            *affine(f"{head}.mlp.fc2", "vision.head.mlp.fc2"),
        ]
    return tuple(rules)


@dataclasses.dataclass(frozen=True)
class Binding:
    """One parameter, the tensors it is made of, and how.

    Attributes:
      path: module path joined by dots.
      shape: of the parameter.
      sources: canonical names, one a layer of a stack.
      rule: of the name table.
    """

    path: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    rule: Rule

    @property
    def stacked(self) -> bool:
        """Whether the parameter is a stack of layers."""
        return "{L}" in self.rule.source

    def expected(self) -> tuple[int, ...] | None:
        """Stored shape of each source tensor; None for a convolution, of which only two numbers are known."""
        inner = self.shape[1:] if self.stacked else self.shape
        if self.rule.transform == "taps":
            return inner[1], 1, inner[0]
        return {"copy": inner, "transpose": inner[::-1], "conv": None}[self.rule.transform]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a source tensor of this shape can be read."""
        expected = self.expected()
        if expected is not None:
            return shape == expected
        return len(shape) > 1 and (int(np.prod(shape[1:])), shape[0]) == self.shape[-2:]

    def read(self, source: Checkpoint, index: tuple[slice, ...], dtype: Any) -> np.ndarray:
        """The slice of the parameter that `index` (in its own coordinates) asks for."""
        if not self.stacked:
            return self._part(source, self.sources[0], index).astype(dtype)
        layers = self.sources[index[0]]
        return np.stack([self._part(source, name, index[1:]).astype(dtype) for name in layers])

    def written(self, value: Any, number: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The stored form of source tensor `number`, from the value of the whole parameter: the inverse of `read`.

        Args:
          value: the parameter; of a stack only the layer asked for is brought to the host.
          number: place in `sources`.
          shape: stored shape, which a convolution needs.
        """
        part = np.asarray(value[number] if self.stacked else value)
        if self.rule.transform == "copy":
            return part
        part = part.T
        if self.rule.transform == "taps":
            part = part[:, None]
        if self.rule.transform == "conv":
            if shape is None:
                raise AssertionError(f"the stored shape of {self.sources[number]} is not known")
            part = part.reshape(shape)
        return np.ascontiguousarray(part)

    def _part(self, source: Checkpoint, name: str, index: tuple[slice, ...]) -> np.ndarray:
        if self.rule.transform == "copy":
            return source.read(name, index)
        if self.rule.transform == "transpose":
            return source.read(name, index[::-1]).T
        if self.rule.transform == "taps":
            return source.read(name, (index[1], slice(None), index[0]))[:, 0].T
        shape = source.shape(name)
        rows = source.read(name, (index[1], *(slice(None),) * (len(shape) - 1)))
        return rows.reshape(rows.shape[0], -1)[:, index[0]].T


def load_parameters(
    build: Callable[[], nnx.Module],
    table: NameTable,
    source: Checkpoint,
    *,
    dtype: Any,
    sharding: ShardingTable,
    mesh: Mesh | None = None,
    units: Mapping[str, int] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Any:
    """A module with the parameters of a checkpoint, read slice by slice onto its devices.

    Args:
      build: makes the module; only traced, nothing is allocated.
      table: names.
      source: tensors.
      dtype: of the parameters.
      sharding: where they go on a mesh.
      mesh: where they go; None means the default device.
      units: see `parallel.sharding_of`.
      progress: called as (bytes done, bytes in all, parameter) after each parameter.

    Raises:
      JvidpruneError: every missing, unused and misshapen tensor, in one message.
    """
    graph, state = nnx.split(nnx.eval_shape(build))
    flat = nnx.to_flat_state(state)
    leaves = {".".join(map(str, path)): variable for path, variable in flat}
    bindings = bind({path: variable.shape for path, variable in leaves.items()}, table)
    if problems := _problems(bindings, table, source):
        raise JvidpruneError(f"{source.folder} does not fit the model its config describes: {'; '.join(problems)}.")
    values = {path: variable.get_value() for path, variable in leaves.items()}
    sizes = {path: held_bytes(value, dtype) for path, value in values.items()}
    total, done, arrays = sum(sizes.values()), 0, {}
    for binding in bindings:

        def place(shape: tuple[int, ...], path: str = binding.path) -> Sharding:
            if mesh is None:
                return SingleDeviceSharding(jax.local_devices()[0])
            return parameter_sharding(path, shape, mesh, sharding, units)

        arrays[binding.path] = placed(binding, source, values[binding.path], dtype, place)
        done += sizes[binding.path]
        if progress is not None:
            progress(done, total, binding.path)
    filled = [(path, variable.replace(arrays[".".join(map(str, path))])) for path, variable in flat]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def bind(shapes: Mapping[str, tuple[int, ...]], table: NameTable) -> list[Binding]:
    """Parameters and the tensors they are made of, in the order of the parameters.

    Args:
      shapes: of the parameters, by module path.
      table: names.
    """
    rules = {rule.target: rule for rule in table.rules}
    if rules.keys() != shapes.keys() or len(rules) != len(table.rules):
        odd = sorted(rules.keys() ^ shapes.keys())
        raise AssertionError(f"name table and modules disagree on {odd}")
    bindings = []
    for path, shape in shapes.items():
        rule = rules[path]
        bindings.append(Binding(path, tuple(shape), rule.sources(tuple(shape)), rule))
    return bindings


def _problems(bindings: Iterable[Binding], table: NameTable, source: Checkpoint) -> list[str]:
    missing, wrong, foreign, used = [], [], [], set()
    for binding in bindings:
        for name in binding.sources:
            used.add(name)
            if name not in source.names:
                missing.append(name)
            elif not binding.fits(shape := source.shape(name)):
                wanted = binding.expected() or f"({binding.shape[-1]}, ...) with {binding.shape[-2]} weights each"
                wrong.append(f"{source.stored(name)} has shape {shape} instead of {wanted}")
            elif not source.is_float(name):
                foreign.append(source.stored(name))
    unused = sorted(source.stored(name) for name in source.names - used if not table.is_dropped(name))
    problems = []
    for what, names in (("missing", missing), ("unused", unused), ("not stored as floating point", foreign)):
        if names:
            problems.append(f"{len(names)} {what}: {_listed(group_layers(names))}")
    if wrong:
        problems.append(f"{len(wrong)} of the wrong shape: {_listed(wrong)}")
    told = odd_tensors([*unused, *foreign])
    return [*problems, told] if told else problems


def _listed(names: list[str]) -> str:
    rest = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return ", ".join([*(quoted(name, 120) for name in names[:_LISTED]), *rest])


def group_layers(names: Iterable[str]) -> list[str]:
    """Names that differ in one layer number only, joined: layers.0.x, layers.1.x -> layers.{0,1}.x; runs as 0-27."""
    groups: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = name if found is None else f"{name[: found.start()]}\0{name[found.end() :]}"
        groups.setdefault(key, []).append(-1 if found is None else int(found.group()))
    out = []
    for key, numbers in groups.items():
        numbers.sort()
        if len(numbers) == 1:
            text = str(numbers[0])
        elif numbers == list(range(numbers[0], numbers[-1] + 1)):
            text = f"{{{numbers[0]}-{numbers[-1]}}}"
        else:
            text = f"{{{','.join(map(str, numbers))}}}"
        out.append(key.replace("\0", text))
    return out
