"""What a run is: a plain record of everything that changes its results, and the hash that names its folder."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jvidprune
from jvidprune.inference.pipeline import VideoLLM

_WHOLE = 1 << 20
_DECIDING = (".json", ".safetensors", ".jinja", ".txt", ".model")
_NUMERIC_PARTS = ("tokens.py", "parallel.py", "ops", "reducers", "models", "stts", "video", "inference", "bench")


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

    That is the model's files, family and type, and those of the checkpoint that lent its pooling head; the prompt; the
    convention and rule of positions that its videos are read with; the sources of the package, the version of JAX and
    the backend.
    """
    loaded = llm.loaded
    return {
        "model": {
            "family": loaded.family,
            "files": model_fingerprint(loaded.folder),
            "pooling_head": None if loaded.pooling_head is None else model_fingerprint(loaded.pooling_head),
            "dtype": str(jax.tree.leaves(loaded.model)[0].dtype),
        },
        "prompt": {
            "texts": llm.prompt_texts("{question}"),
            "newline": llm.newline,
            "positions": llm.settings.positions,
        },
        "reading": {"convention": llm.settings.convention, "mrope_rule": llm.settings.mrope_rule},
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
    """Settings as JSON values: dataclasses with their class names and all fields, arrays by content.

    An object that is neither is described by its `repr`; a reducer of one's own should be a frozen dataclass, whose
    fields tell two settings apart.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}"} | fields
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, frozenset | set):
        return sorted(plain(item) for item in value)
    if isinstance(value, str | bool | int | float | type(None)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        array = np.asarray(value)
        return {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.tolist()}
    return repr(value)


def run_hash(identity: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a plain record; the order of its keys does not matter."""
    text = json.dumps(plain(identity), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
