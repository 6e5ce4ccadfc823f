"""Which reducer runs on which family, and what a family lacks where one does not: the table of docs/models.md.

python -m jvidprune.llm.coverage docs/models.md    rewrites the table in place.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from jvidprune.cuts.attended import check_attended
from jvidprune.cuts.protocol import CutRule
from jvidprune.errors import JvidpruneError
from jvidprune.models.checkpoint.published import published
from jvidprune.models.family import families, get
from jvidprune.models.siglip import SiglipConfig
from jvidprune.reducers import registry
from jvidprune.reducers.protocol import inner_stages, with_defaults
from jvidprune.reducers.table import rewrite
from jvidprune.tokens import QUESTION

_MARK = "<!-- families-table -->"

_WEIGHTS = {"stts": "with a scorer in the tower", "covipal": "with a trained module"}
"""What the methods of `registry.learned` need beside the model."""


def lacking(config: Any, needs: frozenset[str]) -> tuple[str, ...]:
    """Evidence that a family cannot give a method, even with SigLIP's pooling head put next to its tower.

    Every family embeds the text of a question.
    """
    return tuple(sorted(needs - _with_head(config).provides - QUESTION))


def cell(family: str, method: str) -> str:
    """One cell: yes, where the method acts, or what it needs and the family's towers do not give."""
    config = published(get(family).representative or family)
    reducer = registry.get(method, family)
    try:
        with_defaults(reducer).check_model(config)
    except JvidpruneError:
        # The one method that refuses a tower.
        return "no, frames of one size: `pool_space`"
    inside = with_defaults(reducer).tokens_from == "tower"
    if inside and get(family).connection == "shuffled":
        return "no, its tower has a class token"
    # The tower that a method runs itself gives it all that it needs.
    needs = frozenset() if inside else reducer.needs
    if missing := lacking(config, needs):
        return "needs " + ", ".join(f"`{name}`" for name in missing)
    stages = inner_stages(reducer, 0.5)
    try:
        check_attended(stages, config.text.layers, config.text.attending)
    except JvidpruneError:
        return "no, " + (
            "its choice is renewed while decoding"
            if any(isinstance(stage.rule, CutRule) and stage.rule.renewal is not None for stage in stages)
            else "it reads attention in layers without any"
        )
    notes = ["in the LLM"] * bool(stages)
    notes += ["with SigLIP's pooling head"] * (not needs <= config.provides | QUESTION)
    notes += [_WEIGHTS[method]] if method in _WEIGHTS else []
    return f"yes ({', '.join(notes)})" if notes else "yes"


def markdown() -> str:
    """A row a method, a column a family, and one of pictures that are cut into tiles."""
    columns = [family.name for family in families() if family.representative is not None]
    head = ["method", *(f"`{name}`" for name in columns), "tiles of a picture"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name in (*registry.names(), *registry.framed(), *registry.learned()):
        cells = (cell(family, name) for family in columns)
        lines.append(" | ".join([f"`{name}` {registry.info(name).label}", *cells, _tiled(name)]))
    return "\n".join(f"| {line} |" for line in lines)


def _tiled(method: str) -> str:
    """Whether a method runs on the tiles of a picture, where these are its frames (InternVL)."""
    own = with_defaults(registry.get(method))
    if own.tokens_from in ("tower", "frames"):
        return "no, its own tokens"
    return "no, in time" if own.in_time else "yes"


def _with_head(config: Any) -> Any:
    if not isinstance(config.vision, SiglipConfig):
        return config
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, pooling_head=True))


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]), _MARK, markdown())
