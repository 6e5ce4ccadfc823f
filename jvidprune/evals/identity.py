"""What a run is: a plain record of everything that changes its results, and the hash that names its folder."""

import dataclasses
import enum
import functools
import hashlib
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jvidprune
from jvidprune.evals.sources import source_of
from jvidprune.llm.video_llm import VideoLLM

_WHOLE = 1 << 20
_DECIDING = (".json", ".safetensors", ".jinja", ".txt", ".model")
_ELSEWHERE = ("loaded", "tokenizer", "pruning", "text_tower")
"""Fields of a `VideoLLM` that stand in its folder's files, or (the reducer) in what is run."""
_NUMERIC_PARTS = (
    *("tokens.py", "weights.py", "parallel.py", "ops", "cuts", "reducers", "models", "stts", "covipal", "video"),
    *("llm", "costs", "evals", "procedural"),
)


def model_fingerprint(folder: Path) -> str:
    """A hash over the files of a checkpoint folder that decide what it computes: weights, settings, texts.

    Files up to 1 MiB are hashed whole; of larger ones the size, the first and the last half MiB (of safetensors the
    header with every name, type and offset among them), as hashing tens of gigabytes takes longer than a sweep.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in _DECIDING and path.is_file():
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                if path.stat().st_size <= _WHOLE:
                    digest.update(file.read())
                else:
                    digest.update(file.read(_WHOLE // 2))
                    file.seek(-_WHOLE // 2, 2)
                    digest.update(file.read())
    return digest.hexdigest()[:16]


def model_identity(llm: VideoLLM) -> dict[str, Any]:
    """What of a loaded model and its surroundings changes results, as plain values.

    That is the model's files, family and type, and those of the checkpoint that lent its pooling head; the prompt; all
    settings around the model, whatever they are; the sources of the package, the version of JAX and the backend.
    """
    loaded = llm.loaded
    around = {field.name: getattr(llm, field.name) for field in dataclasses.fields(llm) if field.name not in _ELSEWHERE}
    return {
        "model": {
            "family": loaded.family,
            "files": model_fingerprint(loaded.folder),
            "pooling_head": None if loaded.pooling_head is None else model_fingerprint(loaded.pooling_head),
            **({} if llm.text_tower is None else {"text_tower": model_fingerprint(llm.text_tower.folder)}),
            "dtype": str(loaded.dtype),
            **({} if loaded.quantise is None else {"quantise": loaded.quantise}),
        },
        "prompt": {"texts": llm.prompts.texts("{question}"), "newline": llm.newline},
        "around": plain(around),
        "code": {"jvidprune": jvidprune.__version__, "sources": code_fingerprint(), "jax": jax.__version__},
        "backend": jax.default_backend(),
    }


@functools.cache
def code_fingerprint() -> str:
    """A hash over the package's sources that take part in a result: an upgrade starts a run of its own."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for part in _NUMERIC_PARTS:
        path = root / part
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """Settings as JSON values: objects with their class and all fields, functions by name, arrays by content.

    A class or function from outside the package also gives the code that stands behind it (`sources.source_of`).
    """
    return _plain(value, ())


def _plain(value: Any, inside: tuple[int, ...]) -> Any:
    if isinstance(value, str | bool | int | float | type(None)) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, Path):
        return str(value)
    if id(value) in inside:
        return f"{type(value).__qualname__} again"
    inside = (*inside, id(value))
    again = functools.partial(_plain, inside=inside)
    if isinstance(value, Mapping):
        return {str(key): again(item) for key, item in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(map(again, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return [again(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.tolist()}
    if isinstance(value, np.dtype | enum.Enum):
        return str(value)
    if isinstance(value, functools.partial):
        return {"partial": again(value.func), "args": again(value.args), "keywords": again(value.keywords)}
    if isinstance(value, type):
        return _named("class", value, again)
    if hasattr(value, "__qualname__"):
        # A function or a method; those of an object bring its settings along.
        owner = getattr(value, "__self__", None)
        bound = owner is not None and not isinstance(owner, types.ModuleType)
        return _named("function", value, again) | ({"of": again(owner)} if bound else {})
    if dataclasses.is_dataclass(value):
        known = [field for field in dataclasses.fields(value) if field.metadata.get("setting", True)]
        fields = {field.name: again(getattr(value, field.name, None)) for field in known}
    elif isinstance(value, tuple):
        fields = {name: again(item) for name, item in zip(value._fields, value, strict=True)}  # type: ignore[attr-defined]
    else:
        held = dict(getattr(value, "__dict__", {}))
        for name in (name for base in type(value).__mro__ for name in getattr(base, "__slots__", ())):
            if isinstance(name, str) and hasattr(value, name):
                held.setdefault(name, getattr(value, name))
        if not held and type(value).__repr__ is not object.__repr__:
            return repr(value)
        fields = {name: again(item) for name, item in sorted(held.items())}
    return _named("class", type(value), again) | fields


def _named(kind: str, thing: Any, describe: Callable[[Any], Any]) -> dict[str, Any]:
    known = {kind: f"{getattr(thing, '__module__', None)}.{thing.__qualname__}"}
    source = source_of(thing, describe)
    # No field of a dataclass can have a name with a space.
    return known if source is None else known | {f"{kind} source": source}


def run_hash(identity: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a plain record; the order of its keys does not matter."""
    text = json.dumps(plain(identity), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
