"""The reducers, one method a file; `get` builds one by name with a backbone's published settings."""

from jvidprune.reducers.base import MethodInfo, StagedReducer, reduce, reduce_batch, sweep
from jvidprune.reducers.presets import BACKBONES, get, info, names

__all__ = ["BACKBONES", "MethodInfo", "StagedReducer", "get", "info", "names", "reduce", "reduce_batch", "sweep"]
