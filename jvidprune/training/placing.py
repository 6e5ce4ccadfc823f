"""Where a run's parameters, state and batches lie: on one device, or on a mesh by the table of `parallel`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jvidprune import parallel
from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families


@dataclasses.dataclass(frozen=True)
class Placing:
    """One device, or a mesh.

    Attributes:
      mesh: from `parallel.make_mesh`; None for the default device.
      family: of the model, a name of `models.family.names`.
      units: of the model's config, see `parallel.sharding_of`.
    """

    mesh: Mesh | None = None
    family: str = ""
    units: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def check(self, rows: int, parts: int) -> None:
        """Refuses rows that do not divide.

        Args:
          rows: of a step.
          parts: into which a step is divided one after the other.

        Raises:
          JvidpruneError: rows that the parts and the mesh do not divide.
        """
        pieces = 1 if self.mesh is None else parallel.rows_over(self.mesh)
        if parts < 1 or rows % (parts * pieces):
            where = f" over {pieces} devices each" if pieces > 1 else ""
            raise JvidpruneError(f"{rows} rows cannot be divided into {parts} parts{where}.")

    @property
    def _table(self) -> parallel.ShardingTable:
        return families.get(self.family).sharding

    def state(self, tree: Any) -> Any:
        """Parameters, or a state around them, in their places."""
        if self.mesh is None:
            # An array that was put somewhere and one that was not are two kinds to jit: it would compile twice.
            return jax.device_put(tree, jax.local_devices()[0])
        return parallel.shard_state(tree, self.mesh, self._table, self.units)

    def keep(self, tree: Any) -> Any:
        """The same inside a jitted function, where XLA would choose the places of results itself."""
        if self.mesh is None:
            return tree
        shardings = parallel.state_shardings(tree, self.mesh, self._table, self.units)
        return jax.lax.with_sharding_constraint(tree, shardings)

    def batch(self, batch: Any) -> Any:
        """A batch with a leading axis of parts: its rows, the second axis, over the mesh."""
        if self.mesh is None:
            return batch
        return parallel.shard_batch(batch, self.mesh, axis=1, local=jax.process_count() > 1)
