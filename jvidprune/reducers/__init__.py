"""The reducers, one method a file, imported on first use; `get` builds one by name with a backbone's settings."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jvidprune.covipal.reducer import CoViPAL
    from jvidprune.reducers.aot import AOT
    from jvidprune.reducers.cdpruner import CDPruner
    from jvidprune.reducers.compose import Sequential, chain
    from jvidprune.reducers.controls import AttentionTopK, FrameDrop, NormTopK, Random, Uniform
    from jvidprune.reducers.dart import DART
    from jvidprune.reducers.divprune import DivPrune
    from jvidprune.reducers.dstp import DSTP
    from jvidprune.reducers.dycoke import DyCoke
    from jvidprune.reducers.evs import EVS
    from jvidprune.reducers.fastv import FastV
    from jvidprune.reducers.fastvid import FastVID
    from jvidprune.reducers.flashvid import FlashVID
    from jvidprune.reducers.framefusion import FrameFusion
    from jvidprune.reducers.full import Full
    from jvidprune.reducers.grids import (
        PoolSpace,
        PoolSpaceTime,
        PoolTime,
        SampleRandomCell,
        SampleSpace,
        SampleSpaceTime,
        SampleTime,
    )
    from jvidprune.reducers.holitom import HoliTom
    from jvidprune.reducers.holov import HoloV
    from jvidprune.reducers.information_horizon import InformationHorizon
    from jvidprune.reducers.inner_random import InnerRandom
    from jvidprune.reducers.mod import MoD
    from jvidprune.reducers.ottvid import OTTVid
    from jvidprune.reducers.prompt_rules import PromptRules
    from jvidprune.reducers.protocol import BaseReducer, MethodInfo, Reducer, StagedReducer
    from jvidprune.reducers.prunevid import PruneVid
    from jvidprune.reducers.pyramiddrop import PyramidDrop
    from jvidprune.reducers.qwen_norm import QwenNorm
    from jvidprune.reducers.registry import for_model, from_text, get, info, names
    from jvidprune.reducers.run import reduce, reduce_batch, sweep
    from jvidprune.reducers.scissor import Scissor
    from jvidprune.reducers.sparsevlm import SparseVLM
    from jvidprune.reducers.stop import SToP
    from jvidprune.reducers.stop_qwen import VisionZipQwen
    from jvidprune.reducers.swiftvlm import SwiftVLM
    from jvidprune.reducers.tome import ToMe
    from jvidprune.reducers.vcast import VCAST
    from jvidprune.reducers.vidcom2 import VidCom2
    from jvidprune.reducers.videollm_mod import VideoLLMMoD
    from jvidprune.reducers.visionzip import VisionZip
    from jvidprune.reducers.writing import expression
    from jvidprune.reducers.zspaprune import ZSPAPrune
    from jvidprune.stts.reducer import STTS

_SOURCES = {
    "aot": ("AOT",),
    "cdpruner": ("CDPruner",),
    "compose": ("Sequential", "chain"),
    "controls": ("AttentionTopK", "FrameDrop", "NormTopK", "Random", "Uniform"),
    "dart": ("DART",),
    "divprune": ("DivPrune",),
    "dstp": ("DSTP",),
    "dycoke": ("DyCoke",),
    "evs": ("EVS",),
    "writing": ("expression",),
    "fastv": ("FastV",),
    "fastvid": ("FastVID",),
    "flashvid": ("FlashVID",),
    "framefusion": ("FrameFusion",),
    "full": ("Full",),
    "grids": (
        "PoolSpace",
        "PoolSpaceTime",
        "PoolTime",
        "SampleRandomCell",
        "SampleSpace",
        "SampleSpaceTime",
        "SampleTime",
    ),
    "holitom": ("HoliTom",),
    "holov": ("HoloV",),
    "information_horizon": ("InformationHorizon",),
    "inner_random": ("InnerRandom",),
    "mod": ("MoD",),
    "ottvid": ("OTTVid",),
    "protocol": ("BaseReducer", "MethodInfo", "PromptRules", "Reducer", "StagedReducer"),
    "prunevid": ("PruneVid",),
    "pyramiddrop": ("PyramidDrop",),
    "qwen_norm": ("QwenNorm",),
    "registry": ("for_model", "from_text", "get", "info", "names"),
    "run": ("reduce", "reduce_batch", "sweep"),
    "scissor": ("Scissor",),
    "sparsevlm": ("SparseVLM",),
    "stop": ("SToP",),
    "stop_qwen": ("VisionZipQwen",),
    "swiftvlm": ("SwiftVLM",),
    "tome": ("ToMe",),
    "vcast": ("VCAST",),
    "vidcom2": ("VidCom2",),
    "videollm_mod": ("VideoLLMMoD",),
    "visionzip": ("VisionZip",),
    "zspaprune": ("ZSPAPrune",),
    "jvidprune.covipal.reducer": ("CoViPAL",),
    "jvidprune.stts.reducer": ("STTS",),
}

__all__ = [
    "AOT",
    "DART",
    "DSTP",
    "EVS",
    "STTS",
    "VCAST",
    "AttentionTopK",
    "BaseReducer",
    "CDPruner",
    "CoViPAL",
    "DivPrune",
    "DyCoke",
    "FastV",
    "FastVID",
    "FlashVID",
    "FrameDrop",
    "FrameFusion",
    "Full",
    "HoliTom",
    "HoloV",
    "InformationHorizon",
    "InnerRandom",
    "MethodInfo",
    "MoD",
    "NormTopK",
    "OTTVid",
    "PromptRules",
    "PruneVid",
    "PyramidDrop",
    "QwenNorm",
    "Random",
    "Reducer",
    "SToP",
    "Scissor",
    "Sequential",
    "SparseVLM",
    "StagedReducer",
    "SwiftVLM",
    "ToMe",
    "Uniform",
    "VidCom2",
    "VideoLLMMoD",
    "VisionZip",
    "VisionZipQwen",
    "ZSPAPrune",
    "chain",
    "expression",
    "for_model",
    "from_text",
    "get",
    "info",
    "names",
    "reduce",
    "reduce_batch",
    "sweep",
]


def __getattr__(name: str) -> Any:
    for module, names in _SOURCES.items():
        if name in names:
            full = module if "." in module else f"jvidprune.reducers.{module}"
            found = globals()[name] = getattr(importlib.import_module(full), name)
            return found
    raise AttributeError(f"module 'jvidprune.reducers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
