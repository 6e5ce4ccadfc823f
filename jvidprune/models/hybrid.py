"""A decoder in which only some layers have attention, the others a recurrent state (Qwen3.5: three of four).

Each kind of layer is a stack of its own. Runs over whole periods of the pattern are one scan, whose body holds one
period; what is left at either end runs layer by layer.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import CacheSegment
from jvidprune.errors import JvidpruneError
from jvidprune.models.attention import Past, Segments
from jvidprune.models.decoder import Decoder, widened
from jvidprune.models.decoder_config import DecoderConfig
from jvidprune.models.decoder_layer import LayerOutputs, Step
from jvidprune.models.delta import Carried, DeltaLayer, Order, empty_carried
from jvidprune.models.layers import stack
from jvidprune.models.quantised import quantise_layers
from jvidprune.parallel import constrain


class HybridDecoder(Decoder):
    """`Decoder` whose layers outside `config.attending` are `DeltaLayer`s; k, v and attention count the others alone.

    Masked tokens leave the states as they are, and convolutions go by the tokens that are there. A key bias, mutual
    sight and several examples in one row have no meaning in a recurrence and are refused.
    """

    def __init__(self, config: DecoderConfig, *, dtype: Any, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        count = config.layers - len(config.attending)
        self.linear = stack(lambda r: DeltaLayer(config, dtype=dtype, rngs=r), count, rngs)
        if config.quantise is not None:
            quantise_layers(self.linear, config.quantise)

    def step(
        self,
        positions: Int[Array, "... B S"],
        valid: Bool[Array, "B S"],
        *,
        packed: bool = False,
        segments: Segments | None = None,
        bidirectional: Bool[Array, "B S"] | None = None,
        bias: Float[Array, "B S"] | None = None,
    ) -> Step:
        """See `Decoder.step`.

        Raises:
          JvidpruneError: several examples in one row, mutual sight, or a bias of keys.
        """
        asked = {"several examples in one row": segments, "mutual sight": bidirectional, "a bias of keys": bias}
        for what, value in asked.items():
            if value is not None:
                raise JvidpruneError(f"layers with a recurrent state have no place for {what}.")
        return super().step(positions, valid, packed=packed)

    def run(
        self,
        x: Float[Array, "B S D"],
        step: Step,
        start: int,
        stop: int,
        *,
        past: CacheSegment | None = None,
        past_valid: Bool[Array, "B *S M"] | None = None,
        deepstack: Float[Array, "L B S D"] | None = None,
        rows: Int[Array, "B R"] | None = None,
        causal: bool = True,
        hidden: bool = False,
        room: int = 0,
    ) -> tuple[Float[Array, "B S D"], LayerOutputs]:
        """Layers [start, stop), see `Decoder.run`; `past_valid` and `causal` are those of layers with attention.

        Raises:
          JvidpruneError: attention of rows that no layer of the run pays, or levels to add.
        """
        if deepstack is not None:
            raise JvidpruneError("layers with a recurrent state have no levels added behind them.")
        if rows is not None and not self.config.attending_in(start, stop):
            raise JvidpruneError(f"layers {start} to {stop - 1} carry a state and pay no attention.")
        full, linear = self._before(start), start - self._before(start)
        carried = self._carried(x, start, stop, past)
        k = v = None
        if past is not None:
            first = full - self._before(past.start)
            inside = slice(first, first + self.config.attending_in(start, stop))
            k, v = past.k[inside], past.v[inside]
            past_valid = past.valid if past_valid is None else past_valid
        order = Order.of(step.valid, step.packed)

        def attend(layer: Any, x: Array, extra: Any) -> tuple[Array, LayerOutputs]:
            x = constrain(x, "batch", None, None)
            before = None if past_valid is None or past is None else Past(extra[0], extra[1], past_valid, past.bias)
            x, keys, weights = layer(x, step, before, causal=causal, rows=rows)
            return x, LayerOutputs(widened(keys.k, room), widened(keys.v, room), x if hidden else None, weights)

        def recur(layer: DeltaLayer, x: Array, before: Carried) -> tuple[Array, Any]:
            x, after = layer.mix(constrain(x, "batch", None, None), order, before)
            x = layer.feed(x)
            return x, (after, x if hidden else None)

        def through(x: Array, extra: tuple[Any, ...], kinds: tuple[bool, ...]) -> tuple[Array, tuple[Any, ...]]:
            """Some layers by kind: those of one kind behind each other are one scan."""
            full, linear, keys, carried = extra
            ran: list[LayerOutputs] = []
            states, seen, at = [], [], {True: 0, False: 0}
            for kind, group in itertools.groupby(kinds):
                count = len(list(group))
                here = slice(at[kind], at[kind] + count)
                if kind:
                    x, out = self._scan(self.layers, attend, x, full + at[kind], count, _part(keys, here))
                    ran.append(out)
                    seen.append(out.hidden)
                else:
                    x, (state, states_of) = self._scan(
                        self.linear, recur, x, linear + at[kind], count, _part(carried, here)
                    )
                    states.append(state)
                    seen.append(states_of)
                at[kind] += count
            found = (ran and _all([one._replace(hidden=None) for one in ran]), states and _all(states))
            return x, (*found, _all(seen) if hidden else None)

        done: list[tuple[Any, ...]] = []
        used = [0, 0]
        for kinds, times in self._pieces(start, stop):
            counts = [sum(kinds), len(kinds) - sum(kinds)]
            here = [slice(a, a + times * n) for a, n in zip(used, counts, strict=True)]
            keys = None if k is None or v is None else (k[here[0]], v[here[0]])
            extra = (full + used[0], linear + used[1], keys, _part(carried, here[1]))
            if times == 1:
                x, out = through(x, extra, kinds)
            else:
                split = [_split(part, times) for part in (keys, extra[3])]
                begin = [at + n * jnp.arange(times) for at, n in zip(extra[:2], counts, strict=True)]
                x, out = lax.scan(functools.partial(through, kinds=kinds), x, (*begin, *split))
                out = jax.tree.map(lambda part: part.reshape(-1, *part.shape[2:]), out)
            done.append(out)
            used = [a + times * n for a, n in zip(used, counts, strict=True)]
        return x, self._outputs(x, done, room, hidden)

    def mix(
        self,
        x: Float[Array, "B S D"],
        step: Step,
        layer: int,
        rows: Int[Array, "B R"] | None = None,
        past: CacheSegment | None = None,
    ) -> tuple[Float[Array, "B S D"], LayerOutputs]:
        """The branch of one layer in front of its MLP, see `Decoder.mix`.

        Raises:
          JvidpruneError: attention of rows that the layer does not pay.
        """
        if layer in self.config.attending:
            before = None
            if past is not None:
                at = self._before(layer) - self._before(past.start)
                before = Past(past.k[at], past.v[at], past.valid, past.bias)
            x, keys, weights = self._layer(layer).mix(x, step, before, causal=True, rows=rows)
            out = LayerOutputs(keys.k[None], keys.v[None], None, None if weights is None else weights[None])
            return x, out._replace(state=self._carried(x, layer, layer + 1, past))
        if rows is not None:
            raise JvidpruneError(f"layer {layer} carries a state and pays no attention.")
        carried = jax.tree.map(lambda part: part[0], self._carried(x, layer, layer + 1, past))
        order = Order.of(step.valid, step.packed)
        x, after = self._layer(layer).mix(x, order, carried)
        return x, self._outputs(x, [([], jax.tree.map(lambda part: part[None], after), None)], 0, False)

    def held(self, start: int, stop: int, dtype: Any) -> tuple[int, Any]:
        """Layers with keys and values among [start, stop), and the shapes of what one row of the others carries."""
        count = self.config.attending_in(start, stop)
        return count, empty_carried(self.config, (stop - start - count,), dtype)

    def _layer(self, layer: int) -> Any:
        full, attends = self._before(layer), layer in self.config.attending
        graph, state = nnx.split(self.layers if attends else self.linear)
        index = full if attends else layer - full
        return nnx.merge(graph, jax.tree.map(lambda p: lax.index_in_dim(p, index, keepdims=False), state))

    def _before(self, layer: int) -> int:
        """Layers with attention in front of one."""
        return self.config.attending_in(0, layer)

    def _carried(self, x: Array, start: int, stop: int, past: CacheSegment | None) -> Carried:
        """What the layers without attention among [start, stop) carry so far."""
        count = stop - start - self.config.attending_in(start, stop)
        if past is None or past.state is None:
            empty = empty_carried(self.config, (count, x.shape[0]), x.dtype)
            return jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), empty)
        before = (start - self._before(start)) - (past.start - self._before(past.start))
        return _part(past.state, slice(before, before + count))

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[tuple[bool, ...], int]]:
        """Kinds of successive layers (True with attention), and how many times they follow each other."""
        attending = frozenset(self.config.attending)
        kinds = tuple(layer in attending for layer in range(self.config.layers))
        period = next(p for p in range(1, len(kinds) + 1) if kinds[p:] == kinds[: len(kinds) - p])
        first, last = -(-start // period) * period, stop // period * period
        if last - first < 2 * period:
            yield kinds[start:stop], 1
            return
        if start < first:
            yield kinds[start:first], 1
        yield kinds[first : first + period], (last - first) // period
        if last < stop:
            yield kinds[last:stop], 1

    def _scan(
        self, stacked: nnx.Module, body: Callable[..., Any], x: Array, first: Any, count: int, extra: Any
    ) -> tuple[Array, Any]:
        """`count` layers of a stack from a first one, which may be traced, each with its part of `extra`."""
        graph, state = nnx.split(stacked)

        # Picked by index inside the loop: slicing the stack first would copy the weights.
        def one(x: Array, given: tuple[Array, Any]) -> tuple[Array, Any]:
            index, own = given
            params = jax.tree.map(lambda p: lax.dynamic_index_in_dim(p, index, keepdims=False), state)
            return body(nnx.merge(graph, params), x, own)

        once = jax.checkpoint(one, prevent_cse=False) if self.config.remat else one
        return lax.scan(once, x, (first + jnp.arange(count), extra))

    def _outputs(self, x: Array, done: list[tuple[Any, ...]], room: int, hidden: bool) -> LayerOutputs:
        """What all pieces of a run leave; a kind of layer that did not run leaves arrays without any."""
        ran, states = [out[0] for out in done if out[0]], [out[1] for out in done if out[1]]
        if ran:
            found = _all(ran)
        else:
            shape = (0, x.shape[0], max(room, x.shape[1]), self.config.kv_heads, self.config.head_dim)
            found = LayerOutputs(jnp.zeros(shape, x.dtype), jnp.zeros(shape, x.dtype))
        state = _all(states) if states else self._carried(x, 0, 0, None)
        return found._replace(hidden=_all([out[2] for out in done]) if hidden else None, state=state)


def _all(parts: list[Any]) -> Any:
    """Trees of arrays behind each other on their first axis."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def _part(tree: Any, where: slice) -> Any:
    return jax.tree.map(lambda part: part[where], tree)


def _split(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda part: part.reshape(times, -1, *part.shape[1:]), tree)
