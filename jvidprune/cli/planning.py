"""Plans on paper: model x frames x ratio x mesh on named chips, without weights and without the chips."""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jvidprune.cli.costs import check_counts, config_named, layout_of, read_size
from jvidprune.costs.chips import Chip, chip
from jvidprune.costs.flops import count, newline_kind, prompt_sizes
from jvidprune.costs.flops_model import segments
from jvidprune.costs.footprint import Footprint, footprint
from jvidprune.costs.memory import tower_shape
from jvidprune.costs.roofline import REACHED_BANDWIDTH, REACHED_FLOPS, StageTime, stage_times
from jvidprune.errors import JvidpruneError, quoted
from jvidprune.llm.conventions import settings_of
from jvidprune.llm.cuts import newlines_compete
from jvidprune.llm.families import FAMILIES
from jvidprune.parallel import AXES, read_mesh
from jvidprune.reducers.protocol import check_ratio, inner_stages
from jvidprune.reducers.registry import for_model
from jvidprune.texts import whole_number
from jvidprune.tokens import Layout

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Wish:
    """What to plan, as it was written on the command line; see `jvidprune plan --help`."""

    model: str
    chip: str
    mesh: tuple[str, ...]
    frames: str
    ratios: str
    reducer: str
    size: str
    text: int
    new_tokens: int
    batch: int
    dtype: str
    convention: str | None = None


@dataclasses.dataclass(frozen=True)
class PlanRow:
    """One plan.

    Attributes:
      model: name.
      chip: of the table.
      mesh: sizes of data, fsdp and tensor.
      frames: video frames.
      ratio: retention ratio.
      visual, kept: visual tokens of the video, and what the reducer hands on (at most).
      prompt: tokens of the prompt.
      memory: bytes of one device.
      stages: encode, reduce, prefill, token.
    """

    model: str
    chip: Chip
    mesh: dict[str, int]
    frames: int
    ratio: float
    visual: int
    kept: int
    prompt: int
    memory: Footprint
    stages: tuple[StageTime, ...]

    @property
    def first_token(self) -> float:
        """Expected seconds from frames to the first token (TTFT)."""
        return sum(stage.seconds for stage in self.stages if stage.name != "token")

    @property
    def bound(self) -> str:
        """The stage that takes longest until the first token, and what bounds it."""
        slowest = max((stage for stage in self.stages if stage.name != "token"), key=lambda stage: stage.seconds)
        return f"{slowest.name}: {slowest.bound}"

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        memory = dataclasses.asdict(self.memory) | {"peak": self.memory.peak, "fits": self.memory.fits}
        stages = [dataclasses.asdict(s) | {"seconds": s.seconds, "bound": s.bound} for s in self.stages]
        numbers = {"first_token": self.first_token, "bound": self.bound}
        return dataclasses.asdict(self) | {"memory": memory, "stages": stages} | numbers


def rows(wish: Wish) -> list[PlanRow]:
    """Every combination of chips, meshes, numbers of frames and ratios, in that order.

    Raises:
      JvidpruneError: unknown names, impossible numbers, or a mesh that the model cannot be divided over.
    """
    config = config_named(wish.model)
    default = settings_of(config.family, wish.convention).frames
    frames = [_count(part) for part in wish.frames.split(",")] if wish.frames else [default]
    ratios = [check_ratio(part.strip()) for part in wish.ratios.split(",") if part.strip()]  # type: ignore[arg-type]
    chips = [chip(part.strip()) for part in wish.chip.split(",") if part.strip()]
    if not (ratios and chips and wish.mesh):
        raise JvidpruneError("a plan needs at least one chip, one mesh and one ratio.")
    check_counts(text=wish.text, new_tokens=wish.new_tokens, batch=wish.batch)
    meshes = [dict.fromkeys(AXES, 1) | read_mesh(text) for text in wish.mesh]
    if any(size < 1 for sizes in meshes for size in sizes.values()):
        raise JvidpruneError("every axis of a mesh must be at least 1.")
    return [_row(wish, config, *one) for one in itertools.product(chips, meshes, frames, ratios)]


def _count(text: str) -> int:
    number = whole_number(text)
    if number is None:
        raise JvidpruneError(f"frames are whole numbers separated by commas, got {quoted(repr(text))}.")
    return number


def _row(wish: Wish, config: Any, where: Chip, sizes: dict[str, int], frames: int, ratio: float) -> PlanRow:
    layout = layout_of(config, frames, read_size(wish.size), wish.convention)
    method = for_model(wish.reducer, config)
    kept, newlines, prompt = prompt_sizes(config, layout, reducer=method, ratio=ratio, text=wish.text)
    options: dict[str, Any] = {"newlines": newlines, "new_tokens": wish.new_tokens, "exact": False}
    report = count(config, layout, kept=kept, prompt=prompt, reducer=method, ratio=ratio, **options)
    stages = inner_stages(method, ratio)
    acting = [stage for stage in stages if stage.layer < config.text.layers]
    competing = kept + newlines * newlines_compete(acting, newline_kind(config, method))
    parts = segments(stages, config.text.layers, tokens=prompt, visual=competing)
    shape = tower_shape(config, frames, _patches(config, layout))
    common: dict[str, Any] = {"shape": shape, "batch": wish.batch, "dtype": jnp.dtype(wish.dtype)}
    memory = footprint(
        config, where, sizes, prompt=prompt, visual=kept + newlines, new_tokens=wish.new_tokens, **common
    )
    times = stage_times(config, where, sizes, report, parts, **common)
    return PlanRow(wish.model, where, sizes, frames, ratio, layout.total, kept, prompt, memory, times)


def _patches(config: Any, layout: Layout) -> tuple[int, int, int] | None:
    if not FAMILIES[config.family].woven:
        return None
    merge = config.vision.merge
    return layout.frames, layout.grid[0] * merge, layout.grid[1] * merge


def plan_table(found: list[PlanRow]) -> "Table":
    """A row a plan: does it fit, what bounds it, when the first token comes."""
    from rich import box
    from rich.table import Table

    caption = (
        f"GB on one device; times expected at {REACHED_FLOPS:.0%} of peak FLOP/s and {REACHED_BANDWIDTH:.0%} of the "
        "bandwidth, from frames to the first token; decoding the file, compilation and a reducer's many small steps "
        "are not in them"
    )
    cells: dict[str, list[str]] = {
        "chip": [row.chip.name for row in found],
        "mesh": [mesh_text(row.mesh) for row in found],
        "frames": [f"{row.frames}" for row in found],
        "ratio": [f"{row.ratio:g}" for row in found],
    }
    # What is the same everywhere stands above.
    common = {name: column[0] for name, column in cells.items() if len(set(column)) == 1}
    same = ", ".join(
        f"{value} frames" if name == "frames" else value for name, value in common.items() if name != "ratio"
    )
    cells = {name: column for name, column in cells.items() if name not in common or name == "ratio"}
    cells |= {
        "prompt": [f"{row.prompt:,}" for row in found],
        "GB": [f"{row.memory.peak / 1e9:.1f} of {row.memory.available / 1e9:.1f}" for row in found],
        "fits": ["yes" if row.memory.fits else "[bold red]no[/]" for row in found],
        "first token": [f"{1000 * row.first_token:,.0f} ms" for row in found],
        "slowest": [row.bound for row in found],
        "next": [f"{1000 * row.stages[-1].seconds:.1f} ms" for row in found],
    }
    title = found[0].model + (f" · {same}" if same else "")
    table = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, caption_justify="left")
    for name in cells:
        table.add_column(name, justify="left" if name in ("chip", "mesh", "slowest") else "right", no_wrap=True)
    for values in zip(*cells.values(), strict=True):
        table.add_row(*values)
    return table


def stages_table(row: PlanRow) -> "Table":
    """One plan stage by stage: work of one device, seconds of each bound alone, and together."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=f"{row.chip.title}, {mesh_text(row.mesh)}")
    table.add_column("stage")
    for name in ("TFLOP", "GB moved", "GB sent", "FLOPs ms", "HBM ms", "links ms", "expected ms", "bound"):
        table.add_column(name, justify="right")
    for stage in row.stages:
        amounts = stage.flops / 1e12, stage.bytes / 1e9, stage.sent / 1e9
        seconds = stage.compute, stage.memory, stage.link, stage.seconds
        cells = [f"{amount:,.2f}" for amount in amounts] + [f"{1000 * value:,.2f}" for value in seconds]
        table.add_row("one token more" if stage.name == "token" else stage.name, *cells, stage.bound)
    return table


def mesh_text(sizes: dict[str, int]) -> str:
    """Axes that are not 1; "1 device" if all are."""
    return ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "1 device"
