"""Golden files of OTT-Vid (arXiv 2605.11803): every intermediate of both stages."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jvidprune.ops.transport import FixedSinkhorn, LeaveOneOut, Transport, Uniform
from jvidprune.parity import table
from jvidprune.parity.core import Comparer, Golden, Row
from jvidprune.parity.table import Check, optional
from jvidprune.reducers.ottvid import OTTVid
from jvidprune.reducers.run import reduce
from jvidprune.tokens import Reduced, VideoTokens


def reducer_of(config: Any) -> OTTVid:
    """The reducer that a golden file's config describes."""
    return OTTVid(
        temporal_share=config["temporal_share"],
        spatial_retention=config["spatial_retention"],
        budget_temperature=config["ot_budget_temperature"],
        cost_threshold=config["ot_cost_threshold"],
        transport=Transport(
            marginals=Uniform() if config["ot_mass_tau"] is None else LeaveOneOut(config["ot_mass_tau"]),
            solver=FixedSinkhorn.ottvid(config["ot_sinkhorn_eps"], config["ot_sinkhorn_iters"]),
        ),
        temporal=config["enable_temporal"],
        variant="llava" if str(config["backbone"]).startswith("llava") else "qwen",
        centroid_grid=tuple(config["centroid_grid"]),
    )


def _recognises(golden: Golden) -> bool:
    return golden.config.get("method") == "ottvid" and golden.has("features", "attention", "spatial_indices")


@dataclasses.dataclass(frozen=True)
class _Run:
    """A reduced video, where arrays over a frame's places hold its kept tokens first."""

    golden: Golden
    reduced: Reduced

    @functools.cached_property
    def shown(self) -> Mapping[str, np.ndarray]:
        """Diagnostics on the host."""
        return {name: np.asarray(value) for name, value in self.reduced.diagnostics.items()}

    @functools.cached_property
    def index(self) -> np.ndarray:
        """(M,) ids in use."""
        return np.asarray(self.reduced.index)[: int(self.reduced.count)]

    @functools.cached_property
    def kept(self) -> int:
        """Tokens that the first stage keeps of a frame."""
        return int(self.shown["kept_per_frame"])

    def ids(self, name: str) -> np.ndarray:
        """(T, kept) places of a diagnostic as token ids."""
        frames, tokens, _ = self.golden["features"].shape
        return self.shown[name][:, : self.kept] + np.arange(frames)[:, None] * tokens

    def pairs(self, name: str) -> np.ndarray:
        """(T-1, kept, kept) of a transport between neighbouring frames."""
        return self.shown[name][:, : self.kept, : self.kept]

    @functools.cached_property
    def matches(self) -> np.ndarray:
        """(P, 3) pair of frames, parent's and child's place, in the order of matching."""
        rows = []
        for pair, matched in enumerate(self.shown["matched"][:, : self.kept]):
            columns = np.flatnonzero(matched)
            for column in columns[np.argsort(self.shown["match_rank"][pair, columns])]:
                rows.append((pair, int(self.shown["parent"][pair, column]), int(column)))
        return np.array(rows, np.int32).reshape(-1, 3)

    @functools.cached_property
    def roots(self) -> np.ndarray:
        """(T * kept,) id of the row that each kept token ends in."""
        return self.shown["root"][:, : self.kept].reshape(-1)


def _pair_of(name: str) -> Callable[[_Run], np.ndarray]:
    return lambda run: run.pairs(name)


def _matched(step: int, side: int) -> Callable[[_Run], np.ndarray]:
    """Ids of one side of each match."""
    return lambda run: run.ids("position")[run.matches[:, 0] + step, run.matches[:, side]]


def _pruned(run: _Run) -> np.ndarray:
    dropped = run.shown["matched"][:, : run.kept] & ~run.shown["absorbed"][:, : run.kept]
    return np.sort(run.ids("position")[1:][dropped])


def _ranges(run: _Run) -> np.ndarray:
    frame = np.arange(len(run.roots)) // run.kept
    members = [frame[run.roots == root] for root in run.index]
    return np.array([(m.min(), m.max()) for m in members]).reshape(-1, 2)


def _mass(run: _Run) -> np.ndarray:
    """Mass of each row; without a mass temperature the reference counts tokens here."""
    mass = np.ones(len(run.roots))
    if run.golden.config["ot_mass_tau"] is not None:
        mass = run.shown["mass"][:, : run.kept].reshape(-1).astype(np.float64)
    return np.array([mass[run.roots == root].sum() for root in run.index])


SPATIAL: tuple[Check[_Run], ...] = (
    Check("n_spatial", lambda run: run.kept),
    Check("spatial_indices", lambda run: run.ids("position").reshape(-1)),
    Check("fl_order", lambda run: run.ids("order"), optional=True),
)
TEMPORAL: tuple[Check[_Run], ...] = (
    Check("alpha", lambda run: run.shown["pair_weight"], 1e-6),
    Check("mass", lambda run: run.shown["mass"][:, : run.kept], 5e-6, optional=True),
    Check("cost", _pair_of("transport_cost"), 1e-6),
    Check("plan", _pair_of("transport_plan"), 5e-6),
    Check("pair_cost", lambda run: run.shown["pair_cost"], 5e-6),
    Check("budgets", lambda run: run.shown["removals"]),
)
MATCHES: tuple[Check[_Run], ...] = (
    Check("matches", lambda run: run.matches),
    Check("match_parent", _matched(0, 1)),
    Check("match_child", _matched(1, 2)),
    Check(
        "match_cost",
        lambda run: run.pairs("transport_cost")[tuple(run.matches.T)],
        1e-6,
        when=lambda run: len(run.matches) == len(run.golden["match_cost"]),
    ),
    Check("pruned_child", _pruned),
)
ROWS: tuple[Check[_Run], ...] = (
    *optional(
        (
            Check("root", lambda run: run.roots),
            Check("temporal_ranges", _ranges),
            Check("survivor_mass", _mass, 2e-5),
        )
    ),
    Check("indices", lambda run: run.index),
    Check(
        "tokens",
        lambda run: np.asarray(run.reduced.tokens)[: len(run.index)],
        2e-6,
        1e-6,
        when=lambda run: len(run.index) == len(run.golden["indices"]),
    ),
)


def _compare(golden: Golden) -> Iterator[Row]:
    evidence = {"attention_last": golden["attention"]}
    video = VideoTokens.create(golden["features"], evidence, grid=tuple(golden.config["grid"]))
    ratio = golden.config["total_retention_ratio"]
    run = _Run(golden, reduce(reducer_of(golden.config), video, ratio, diagnostics=True))
    yield from table.compare(SPATIAL, run, golden)
    if golden.has("plan"):
        yield from table.compare(TEMPORAL, run, golden)
        if golden.has("matches"):
            yield from table.compare(MATCHES, run, golden)
    yield from table.compare(ROWS, run, golden)


COMPARERS: list[Comparer] = [Comparer("ottvid", _recognises, _compare)]
