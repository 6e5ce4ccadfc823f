"""Costs, masses and solvers of the user's own, named on the command line by their file."""

import numpy as np
import pytest

import jvidprune
from jvidprune import JvidpruneError
from jvidprune.ops.transport import Sinkhorn, TokenCost, Transport
from jvidprune.own_code import code_refused
from jvidprune.reducers import AOT
from jvidprune.reducers.registry import from_text
from jvidprune.synthetic import synthetic_tokens

VIDEO = synthetic_tokens(seed=0, frames=4, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))
CODE = """
import dataclasses

import jax
import jax.numpy as jnp
from jvidprune.ops.transport import Sinkhorn, Uniform, cosine, distance


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Place:
    weight: float = 0.5

    def __call__(self, x, y):
        return 1.0 - cosine(x, y) + self.weight * distance(x, y)


def plain(x, y):
    return Place()(x, y)


masses = Uniform()


def cool(epsilon):
    return Sinkhorn(epsilon)


number = 3


class Broken:
    def __call__(self, x):
        return x
"""


@pytest.fixture
def where(tmp_path):
    path = tmp_path / "my_own_parts.py"
    path.write_text(CODE)
    return path


def made(parts):
    return from_text(f"aot(window=4, clips=2, inter=False, intra_transport=Transport({parts}))")


def test_parts_of_a_file_are_what_they_are_in_python(where):
    def tokens(reducer):
        return np.asarray(jvidprune.reduce(reducer, VIDEO, 0.4).tokens)

    ours = made(f"cost={where}:Place(weight=2.0), marginals={where}:masses, solver={where}:cool(epsilon=0.3)")
    theirs = AOT(window=4, clips=2, inter=False, intra_transport=Transport(TokenCost(w_pos=2.0), solver=Sinkhorn(0.3)))
    assert type(ours.intra_transport.cost).__name__ == "Place"
    np.testing.assert_allclose(tokens(ours), tokens(theirs), atol=1e-6)
    assert ours == made(f"cost={where}:Place(weight=2.0), marginals={where}:masses, solver={where}:cool(epsilon=0.3)")
    assert callable(made(f"cost={where}:plain").intra_transport.cost)
    assert made(f"cost={where}:Place").intra_transport.cost.weight == 0.5


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("cost={}:Plac", "Did you mean 'Place'?"),
        ("cost={}:number", "number is no cost"),
        ("cost={}:Broken", "Broken is no cost"),
        ("solver={}:Place", "Place is no solver"),
        ("cost={}:Place(width=2)", "cannot be made with width=2"),
        ("cost={}x:Place", "cannot read"),
    ],
)
def test_what_is_no_such_part_is_said_in_one_sentence(where, part, said):
    with pytest.raises(JvidpruneError) as error:
        made(part.format(where))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_code_that_a_file_or_a_page_names_is_refused(tmp_path):
    path = tmp_path / "never_named_before.py"
    path.write_text("raise SystemExit('this must not run')\n")
    with code_refused(), pytest.raises(JvidpruneError, match="whose code would be run"):
        made(f"cost={path}:Place")
