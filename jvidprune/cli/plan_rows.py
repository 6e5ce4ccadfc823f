"""Plans on paper: model x frames x ratio x mesh on named chips, one row each."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from jvidprune.cli.options import ConventionName, QuantiseName
from jvidprune.errors import JvidpruneError, quoted

if TYPE_CHECKING:
    from jvidprune.costs.chips import Chip
    from jvidprune.costs.footprint import Footprint
    from jvidprune.costs.roofline import StageTime
    from jvidprune.tokens import Layout


@dataclasses.dataclass(frozen=True)
class PlanChoice:
    """What to plan."""

    model: str = "qwen2.5-vl-7b"
    """A published model such as qwen2.5-vl-7b, or a folder with config.json."""
    chip: str = "h100"
    """h100, h200, a100-40g, a100-80g, v4, v5e, v5p or v6e; several separated by commas."""
    mesh: tuple[str, ...] = ("tensor=1",)
    """One or several, as in "tensor=2" or "data=2,fsdp=4,tensor=2"."""
    frames: str = ""
    """Of the video, several separated by commas; by default what the family was evaluated with."""
    ratios: str = "1,0.25,0.1"
    """Retention ratios in (0, 1], separated by commas."""
    reducer: str = "flashvid"
    """Method (`jvidprune methods`), with settings as in "flashvid(alpha=0.5)"."""
    size: str = "448x448"
    """Frames in pixels, HEIGHTxWIDTH; only the Qwen families read more than one size."""
    text: int = 57
    """Text tokens of the prompt."""
    new_tokens: int = 64
    """Longest answer."""
    batch: int = 1
    """Prompts read together, each with a video of its own."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of parameters and activations."""
    quantise: QuantiseName | None = None
    """Hold the language model's matrices in one byte a weight (docs/models.md); needs the extra quantise."""
    compile: str = ""
    """Compile all programs for a slice of TPUs, such as v5e:2x4, and show what XLA says of them (extra tpu)."""
    train: bool = False
    """With --compile: the step that trains STTS with everything else, in place of an answer's programs. A ratio is the
    share of windows that stays, --batch the rows of each of the mesh's pieces, --text what a row asks and answers."""
    convention: ConventionName | None = None
    """That the video is read in (docs/conventions.md); by default the authors' released code's."""


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
      newlines: newline embeddings of the prompt.
      prompt: tokens of the prompt.
      layout: of the video's tokens.
      memory: bytes of one device.
      stages: encode, reduce, prefill, token.
    """

    model: str
    chip: "Chip"
    mesh: dict[str, int]
    frames: int
    ratio: float
    visual: int
    kept: int
    newlines: int
    prompt: int
    layout: "Layout"
    memory: "Footprint"
    stages: "tuple[StageTime, ...]"

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


def rows(choice: PlanChoice) -> list[PlanRow]:
    """Every combination of chips, meshes, numbers of frames and ratios, in that order.

    Raises:
      JvidpruneError: unknown names, impossible numbers, or a mesh that the model cannot be divided over.
    """
    return [row for _, _, row in planned(choice)]


def planned(choice: PlanChoice, chips: int | None = None) -> Iterator[tuple[Any, dict[str, int], PlanRow]]:
    """The config, the sizes of the mesh and the plan of every combination, in the order of `rows`.

    Args:
      choice: what to plan.
      chips: that the meshes fill, so that "data" takes those that are left; None takes the meshes as they are.

    Raises:
      JvidpruneError: as `rows`.
    """
    from jvidprune.cli.paper import check_counts, config_named
    from jvidprune.costs.chips import chip
    from jvidprune.llm.conventions import settings_of
    from jvidprune.models.quantised import with_quantise
    from jvidprune.parallel import AXES, read_mesh
    from jvidprune.reducers.protocol import check_ratio

    config = with_quantise(config_named(choice.model), choice.quantise)
    default = settings_of(config.family, choice.convention).frames
    frames = [_count(part) for part in choice.frames.split(",")] if choice.frames else [default]
    ratios = [check_ratio(part.strip()) for part in choice.ratios.split(",") if part.strip()]  # type: ignore[arg-type]
    kinds = [chip(part.strip()) for part in choice.chip.split(",") if part.strip()]
    if not (ratios and kinds and choice.mesh):
        raise JvidpruneError("a plan needs at least one chip, one mesh and one ratio.")
    check_counts(text=choice.text, new_tokens=choice.new_tokens, batch=choice.batch)
    meshes = [dict.fromkeys(AXES, 1) | read_mesh(text) for text in choice.mesh]
    if any(size < 1 for sizes in meshes for size in sizes.values()):
        raise JvidpruneError("every axis of a mesh must be at least 1.")
    if chips is not None:
        meshes = [_filled(sizes, chips, text) for sizes, text in zip(meshes, choice.mesh, strict=True)]
    for kind, sizes, count, ratio in itertools.product(kinds, meshes, frames, ratios):
        yield config, sizes, _row(choice, config, kind, sizes, count, ratio)


def _filled(sizes: dict[str, int], chips: int, text: str) -> dict[str, int]:
    """A mesh with as many copies as a slice has room for."""
    used = sizes["fsdp"] * sizes["tensor"]
    if "data" in text and sizes["data"] * used == chips:
        return sizes
    if "data" in text or chips % used:
        raise JvidpruneError(f"a mesh of {text} does not fill the {chips} chips of the slice.")
    return sizes | {"data": chips // used}


def _count(text: str) -> int:
    from jvidprune.texts import whole_number

    number = whole_number(text)
    if number is None:
        raise JvidpruneError(f"frames are whole numbers separated by commas, got {quoted(repr(text))}.")
    return number


def _row(choice: PlanChoice, config: Any, where: "Chip", sizes: dict[str, int], frames: int, ratio: float) -> PlanRow:
    import jax.numpy as jnp

    from jvidprune.cli.paper import layout_of, read_size
    from jvidprune.costs.flops import count, prompt_segments, prompt_sizes
    from jvidprune.costs.footprint import footprint
    from jvidprune.costs.memory import video_shape
    from jvidprune.costs.roofline import stage_times
    from jvidprune.reducers.protocol import inner_stages, with_defaults
    from jvidprune.reducers.registry import for_model

    layout = layout_of(config, frames, read_size(choice.size), choice.convention)
    method = for_model(choice.reducer, config)
    kept, newlines, prompt = prompt_sizes(config, layout, reducer=method, ratio=ratio, text=choice.text)
    report = count(
        config,
        layout,
        kept=kept,
        prompt=prompt,
        reducer=method,
        ratio=ratio,
        newlines=newlines,
        new_tokens=choice.new_tokens,
        exact=False,
    )
    parts = prompt_segments(config, method, ratio, kept=kept, newlines=newlines, prompt=prompt)
    seen = with_defaults(method).seen(layout, ratio)
    shape = video_shape(config, frames if seen == layout else seen.frames, seen)
    dtype = jnp.dtype(choice.dtype)
    memory = footprint(
        config,
        where,
        sizes,
        prompt=prompt,
        visual=kept + newlines,
        new_tokens=choice.new_tokens,
        shape=shape,
        batch=choice.batch,
        dtype=dtype,
        stages=inner_stages(method, ratio),
    )
    times = stage_times(config, where, sizes, report, parts, shape=shape, batch=choice.batch, dtype=dtype)
    tokens = layout.total, kept, newlines, prompt
    return PlanRow(choice.model, where, sizes, frames, ratio, *tokens, layout, memory, times)


def mesh_text(sizes: dict[str, int]) -> str:
    """Axes that are not 1; "1 device" if all are."""
    return ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "1 device"
