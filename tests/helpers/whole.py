"""Tensors that a name table takes apart, put together as they are published."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jvidprune.models.checkpoint.names import Split


def whole_tensors(
    parts: Mapping[str, Any], splits: Sequence[Split], join: Callable[[list[Any]], Any]
) -> dict[str, Any]:
    """A checkpoint's tensors, or their shapes, by canonical name, with the parts of each split joined."""
    found = dict(parts)
    for split in splits:
        first = re.escape(split.parts[0][0]).replace(re.escape("{L}"), r"(\d+)")
        for name in parts:
            if layer := re.fullmatch(first, name):
                whole = split.source.replace("{L}", layer.group(1))
                found[whole] = join([found.pop(part) for part, _ in split.of(whole) or ()])
    return found
