"""A reducer of a user's own, as the text of a module that reads a number from a second one."""

MINE = '''
"""A module of a user's own."""
import dataclasses
import jax.numpy as jnp
import numpy as np
from jvidprune.ops.compact import selection_plan
from {helper} import sign

@dataclasses.dataclass(frozen=True)
class Mine:
    """Keeps the tokens with the largest norms."""

    share: float = 1.0

    needs = frozenset()

    def budget(self, layout, ratio):
        return np.int32(max(1, round(layout.total * ratio * self.share)))

    def capacity(self, layout, ratio):
        return int(self.budget(layout, ratio))

    def plan(self, video, budget, *, capacity):
        norms = jnp.linalg.norm(video.features.astype(jnp.float32), axis=-1).reshape(-1)
        rank = jnp.argsort(jnp.argsort(sign * norms, stable=True), stable=True)
        return selection_plan(rank < budget, capacity)
'''
"""`helper` is the other module's name, whose `sign` is -1."""
