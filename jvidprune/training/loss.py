"""The loss of packed rows: what the language model says to questions about clips, and what pruning costs on the way."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jvidprune.models.attention import Segments
from jvidprune.training.data import NEWLINE, PackedRows
from jvidprune.training.step import Params


class ClipTokens(NamedTuple):
    """What a reader makes of B clips.

    Attributes:
      tokens: (B, K, D) visual tokens in the order in which the language model reads them.
      loss: (B,) float32 auxiliary loss of each clip, already scaled.
      place: (B, K) int32 place of each token among those of the clip unpruned, where tokens keep their positions; None
        counts positions anew.
    """

    tokens: Float[Array, "B K D"]
    loss: Float[Array, "B"]
    place: Any = None


class RowsLoss(Protocol):
    """What a step learns from; `rows_loss` is one."""

    def __call__(
        self, trainee: "Trainee", reader: "Reader", params: Params, rows: PackedRows, key: Array, *, z: float
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """A part's share of a step's loss, and metrics that are summed over parts; arguments as for `rows_loss`."""
        ...


class Reader(Protocol):
    """How clips become visual tokens."""

    @property
    def kept(self) -> int:
        """K: visual tokens of a clip, the same for all."""
        ...

    @property
    def whole(self) -> int:
        """Tokens of a clip unpruned."""
        ...

    def __call__(self, parts: Any, pixels: Float[Array, "B T 3 s s"], key: Array) -> ClipTokens:
        """Tokens of clips.

        Args:
          parts: what `Trainee.merge` gives: the modules by name, the model's "model" among them.
          pixels: of the clips.
          key: of the step.
        """
        ...


class Structure(NamedTuple):
    """A module without its parameters.

    Attributes:
      graph: of the module.
      leaves: name among all parameters, path in the module and abstract variable of each parameter.
    """

    graph: Any
    leaves: tuple[tuple[str, Any, Any], ...]


class Trainee(NamedTuple):
    """Modules in training, apart from their parameters.

    Attributes:
      structures: of each module by name; "model" is a model with `lm` and, for a newline, `newline`.
    """

    structures: dict[str, Structure]

    @classmethod
    def split(cls, **modules: Any) -> tuple["Trainee", Params]:
        """Structure and parameters; those of "model" go by their own paths, others have the module's name before."""
        structures: dict[str, Structure] = {}
        params: Params = {}
        for name, module in modules.items():
            graph, state = nnx.split(module)
            leaves = []
            for path, variable in nnx.to_flat_state(state):
                dotted = ".".join(map(str, path if name == "model" else (name, *path)))
                params[dotted] = variable[...]
                leaves.append((dotted, path, jax.eval_shape(lambda v=variable: v)))
            structures[name] = Structure(graph, tuple(leaves))
        return cls(structures), params

    def merge(self, params: Params) -> dict[str, Any]:
        """The modules with the given parameters."""
        return {
            name: nnx.merge(
                structure.graph,
                nnx.from_flat_state([(path, leaf.replace(params[dotted])) for dotted, path, leaf in structure.leaves]),
            )
            for name, structure in self.structures.items()
        }


def rows_loss(
    trainee: Trainee, reader: Reader, params: Params, rows: PackedRows, key: Array, *, z: float = 1e-4
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """A part's share of a step's loss: answers, auxiliary loss of the reader, and z times the squared log-normaliser.

    Args:
      trainee: structure of the modules.
      reader: clips to tokens.
      params: parameters of all modules.
      rows: packed examples.
      key: of the step.
      z: coefficient of the softmax's auxiliary loss (PaLM, arXiv 2204.02311), 0 for none.

    Returns:
      The loss, and metrics that are summed over parts: `answer` (cross entropy in nats a token), `auxiliary`, `z`,
      `hits/all` questions of which every token of the answer is the most probable one, `asked/all` questions.
    """
    parts = trainee.merge(params)
    model = parts["model"]
    count, clips = rows.share.shape
    found = reader(parts, rows.pixels.reshape(count * clips, *rows.pixels.shape[2:]), key)
    tokens = found.tokens.reshape(count, clips * reader.kept, -1)
    if found.place is not None:
        place = found.place.reshape(count, clips * reader.kept)
        rows = rows._replace(position=own_positions(rows, place, reader.kept, reader.whole))
    states = read_rows(model, tokens, rows)
    logits = model.lm.logits(jnp.take_along_axis(states, rows.slot[..., None], axis=1))
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, rows.target[..., None], axis=-1)[..., 0]
    answer = (rows.weight * (normaliser - picked)).sum()
    auxiliary = (rows.share.reshape(-1) * found.loss).sum()
    spread = z * (rows.weight * normaliser**2).sum()
    hits, asked = judge(logits.argmax(-1), rows)
    metrics = {"answer": answer, "auxiliary": auxiliary, "z": spread, "hits/all": hits, "asked/all": asked}
    return answer + auxiliary + spread, metrics


def read_rows(model: Any, tokens: Float[Array, "R V D"], rows: PackedRows) -> Float[Array, "R S D"]:
    """The language model's last hidden states, before the final norm.

    Args:
      model: with `lm` and, for a newline, `newline`.
      tokens: (R, V) visual tokens of the clips of each row, one clip after the other.
      rows: what stands where.
    """
    x = embed_rows(model, tokens, rows)
    segments = Segments(jnp.asarray(rows.segment), jnp.asarray(rows.branch))
    step = model.lm.step(rows.position, rows.segment > 0, segments=segments)
    return model.lm.run(x, step, 0, model.lm.config.layers)[0]


def embed_rows(model: Any, tokens: Float[Array, "R V D"], rows: PackedRows) -> Float[Array, "R S D"]:
    """What enters the language model; arguments are those of `read_rows`."""
    x = model.embed_text(rows.ids)
    visual = jnp.take_along_axis(tokens, jnp.maximum(rows.visual, 0)[..., None], axis=1).astype(x.dtype)
    x = jnp.where((rows.visual >= 0)[..., None], visual, x)
    if hasattr(model, "newline"):
        x = jnp.where((rows.visual == NEWLINE)[..., None], model.newline.astype(x.dtype), x)
    return x


def own_positions(rows: PackedRows, place: Int[Array, "R V"], kept: int, whole: int) -> Int[Array, "R S"]:
    """Positions of the unpruned prompt: visual tokens at their own places, what follows them behind all places.

    Args:
      rows: with positions that count kept tokens alone.
      place: (R, V) place of each visual token among the `whole` ones of its clip.
      kept: K.
      whole: visual tokens of a clip unpruned.
    """
    number = jnp.maximum(rows.visual, 0)
    moved = jnp.take_along_axis(place, number, axis=1) - number % kept
    behind = (rows.branch > 0) | (rows.visual == NEWLINE)
    return jnp.asarray(rows.position) + jnp.where(rows.visual >= 0, moved, jnp.where(behind, whole - kept, 0))


def judge(said: Int[Array, "R A"], rows: PackedRows) -> tuple[Array, Array]:
    """Questions answered right, token by token given the right tokens before, and questions asked."""
    places = said.shape[1]
    judged = rows.question >= 0
    # Places of a question's tokens all point at its first.
    at = jnp.where(judged, rows.question, places)
    wrong = (judged & (said != rows.target)).astype(jnp.int32)
    row = jnp.arange(said.shape[0])[:, None]
    misses = jnp.zeros((said.shape[0], places + 1), jnp.int32).at[row, at].add(wrong)[:, :-1]
    there = jnp.zeros(misses.shape, bool).at[row, at].set(judged, mode="drop")
    return (there & (misses == 0)).sum().astype(jnp.float32), there.sum().astype(jnp.float32)
