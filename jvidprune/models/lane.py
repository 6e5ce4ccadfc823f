"""Continuous batching: rows that answer side by side, where a new prompt takes a free row while others go on.

All rows share the slot that is written next, and each has its own mask, positions, step, key and settings: a prompt
that was read by itself is copied into its row, slots between its end and the shared one stay masked, so that a row
answers as it would alone. Slots are used up by every step of any row: a prompt that no longer fits waits until the
rows are empty, which starts the slots anew. Three programs serve everything: one that puts a prompt in for each length
of prompts, and one that goes on.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jvidprune.cuts.cache import Cache
from jvidprune.errors import JvidpruneError
from jvidprune.models.generate import Going, How, go_on_rows, start_rows
from jvidprune.models.sampling import GREEDY, Numbers, Sampling
from jvidprune.parallel import on_every_device, on_mesh_of

STEPS = 8
"""Tokens that all rows go on by before the host looks at them."""


class Lane:
    """Rows of one cache; host-side state of the programs below.

    Attributes:
      rows: how many.
      capacity: slots of the cache.
    """

    def __init__(self, model: Any, *, rows: int, capacity: int, vocab: int, eos_ids: tuple[int, ...]):
        """Empty rows.

        Args:
          model: any model with a decoder `lm`.
          rows: at least 1.
          capacity: slots; a prompt, its answer and `STEPS` more must fit.
          vocab: ids of the model's logits.
          eos_ids: ids that end a row.
        """
        self.rows, self.capacity = rows, capacity
        self._model = model
        self._free = list(range(rows))
        # Tokens that each row may still write, and the slot that all write next.
        self._left: dict[int, int] = {}
        self._length = 0
        with on_mesh_of(model) as mesh:
            self._cache = model.lm.empty_cache(rows, capacity, mesh=mesh)
        seen = jnp.zeros((rows, vocab), bool)
        self._going = Going(jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool), seen, jnp.ones(rows, jnp.int32))
        numbers = Numbers(*(jnp.broadcast_to(part, (rows, 1)) for part in GREEDY.numbers))
        self._how = How(numbers, jax.random.split(jax.random.key(0), rows), jnp.asarray(eos_ids, jnp.int32))

    @property
    def busy(self) -> bool:
        """Whether any row answers."""
        return len(self._free) < self.rows

    def fits(self, width: int, new: int) -> bool:
        """Whether a prompt of so many slots and its answer find a free row and slots now.

        Raises:
          JvidpruneError: they find none even when all rows are empty.
        """
        if width + new + STEPS > self.capacity:
            raise JvidpruneError(
                f"a prompt of {width} slots and {new} new tokens do not fit the {self.capacity} slots of a row."
            )
        # A longer prompt moves the slot that all rows write next: what they may still write must fit behind it.
        length, new = max(self._length if self.busy else 0, width), max([new, *self._left.values()])
        return bool(self._free) and length + new + STEPS <= self.capacity

    def put(
        self,
        logits: Float[Array, "1 V"],
        cache: Cache,
        width: int,
        new: int,
        sampling: Sampling,
        key: Array,
        seen: Bool[np.ndarray, "V"],
    ) -> tuple[int, int]:
        """Puts a prompt that was read into a free row; see `fits`.

        Args:
          logits, cache: of its prefill, in one row of as many slots as the rows here.
          width: slots of the prompt, padding included.
          new: tokens of its answer at most.
          sampling: its settings.
          key: its random key.
          seen: ids that a penalty acts on from the start.

        Returns:
          The row, and the first token of the answer.

        Raises:
          JvidpruneError: methods act inside the model, whose caches differ by row.
        """
        if len(cache.segments) != 1 or cache.policy is not None:
            raise JvidpruneError("methods that act inside the language model share no batch here.")
        self._length = max(self._length if self.busy else 0, width)
        row = self._free.pop(0)
        self._left[row] = new
        with on_mesh_of(self._model):
            self._going, self._how, self._cache, first = _put(
                self._going,
                self._how,
                self._cache,
                jnp.int32(row),
                jnp.int32(self._length),
                logits,
                cache,
                Numbers(*(part[None, None] for part in sampling.numbers)),
                key,
                jnp.asarray(seen)[None],
            )
        return row, int(first)

    def go_on(self) -> Int[np.ndarray, "B P"]:
        """`STEPS` further tokens of every row that answers, -1 behind a row's end and in empty rows."""
        with on_mesh_of(self._model):
            tokens, _, self._going, self._cache = go_on_rows(
                self._model, self._going, self._cache, self._how, jnp.int32(STEPS), steps=STEPS, greedy=False
            )
        # Fewer steps where all rows ended on the way; the cache says how many.
        before, self._length = self._length, int(self._cache.segments[0].length)
        self._left = {row: max(left - (self._length - before), 0) for row, left in self._left.items()}
        return np.asarray(tokens)

    def free(self, row: int) -> None:
        """Takes a row back, whose answer has ended or is not wanted."""
        self._going = self._going._replace(done=self._going.done.at[row].set(True))
        self._left.pop(row)
        self._free.append(row)


@functools.partial(jax.jit, donate_argnames=("going", "cache"))
def _put(
    going: Going,
    how: How,
    cache: Cache,
    row: Array,
    length: Array,
    logits: Array,
    new: Cache,
    numbers: Numbers,
    key: Array,
    seen: Array,
) -> tuple[Going, How, Cache, Array]:
    begun = start_rows(logits, seen, How(numbers, key[None], how.eos_ids), False)
    token, marked = begun.token[0], going.seen
    if marked is not None and begun.seen is not None:
        marked = marked.at[row].set(begun.seen[0])
    done = going.done.at[row].set(begun.done[0])
    going = Going(going.token.at[row].set(token), done, marked, going.step.at[row].set(1))
    settings = Numbers(*(old.at[row].set(one[0]) for old, one in zip(how.numbers, numbers, strict=True)))
    how = how._replace(numbers=settings, key=how.key.at[row].set(key))
    there, here = cache.segments[0], new.segments[0]
    segment = dataclasses.replace(
        there,
        k=there.k.at[:, row].set(here.k[:, 0]),
        v=there.v.at[:, row].set(here.v[:, 0]),
        valid=there.valid.at[row].set(here.valid[0]),
        length=length,
        state=jax.tree.map(lambda rows, one: rows.at[:, row].set(one[:, 0]), there.state, here.state),
    )
    cache = Cache((segment,), cache.position.at[row].set(new.position[0]))
    return going, how, cache, on_every_device(token)
