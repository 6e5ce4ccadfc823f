"""jvidprune: visual-token reduction for video LLMs in JAX.

A video becomes tokens with evidence; a reducer turns them into fewer tokens under an integer budget; a model reads
those.

    llm = jvidprune.VideoLLM.load()                     # the embedded model, a folder, or a hub id
    video = llm.encode("clip.mp4", reducer="flashvid")  # a path, frames or a Clip
    print(llm.ask(video, "What happens?", reducer="flashvid", ratio=0.1).text)

`reduce` and `sweep` work on tokens alone. Names are imported on first use, so that the command line starts without
waiting for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jvidprune import reducers
    from jvidprune.errors import JvidpruneError
    from jvidprune.evals.probe import probe
    from jvidprune.llm.encoded import EncodedVideo
    from jvidprune.llm.video_llm import Answer, VideoLLM
    from jvidprune.reducers.protocol import Reducer
    from jvidprune.reducers.run import reduce, reduce_batch, sweep
    from jvidprune.tokens import EVIDENCE, Budget, Layout, Plan, Reduced, VideoTokens

__version__ = "0.1.0"

_SOURCES = {
    "errors": ("JvidpruneError",),
    "evals.probe": ("probe",),
    "llm.encoded": ("EncodedVideo",),
    "llm.video_llm": ("Answer", "VideoLLM"),
    "reducers.protocol": ("Reducer",),
    "reducers.run": ("reduce", "reduce_batch", "sweep"),
    "tokens": ("EVIDENCE", "Budget", "Layout", "Plan", "Reduced", "VideoTokens"),
}

__all__ = [
    "EVIDENCE",
    "Answer",
    "Budget",
    "EncodedVideo",
    "JvidpruneError",
    "Layout",
    "Plan",
    "Reduced",
    "Reducer",
    "VideoLLM",
    "VideoTokens",
    "probe",
    "reduce",
    "reduce_batch",
    "reducers",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "reducers":
        return importlib.import_module("jvidprune.reducers")
    for module, names in _SOURCES.items():
        if name in names:
            return getattr(importlib.import_module(f"jvidprune.{module}"), name)
    raise AttributeError(f"module 'jvidprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
