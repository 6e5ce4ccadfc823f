"""CoViPAL (reconstruction): a small trained module reads visual tokens and the question and says which stay.

No code of the authors is public; this follows the abstract of arXiv 2508.17243 and what is said of its method, and
`module.PPM` is ours in size. v are the visual tokens, t the question's embeddings.

1. S = PPM(v, t): one projection for both, two blocks of full attention over [v; t], one number a visual token.
2. The k = max(1, round(r n)) tokens with the largest S stay, unchanged, in order of position; equal ones by position.

With a module that was trained in front of layer l > 0 all tokens enter the language model and the choice is made
there, from the states; the text is what stands behind the video. What stays of a smaller ratio lies inside what stays
of a larger one. The module is trained for one model (`jvidprune train covipal`); without one there is nothing to choose
by.

>>> import jvidprune, numpy
>>> from jvidprune.covipal import PPM, module_weights
>>> from jvidprune.synthetic import synthetic_tokens
>>> untrained = module_weights(PPM(64, width=12, hidden=24))
>>> made = jvidprune.reducers.get("covipal", module=untrained)
>>> jvidprune.reduce(made, synthetic_tokens(grid=(6, 6)), 0.1, text=numpy.ones((4, 64), "float32")).count.item()
29
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jvidprune.covipal.module import made_of, module_of, parameters_of
from jvidprune.covipal.rules import ModuleTopK
from jvidprune.errors import JvidpruneError
from jvidprune.ops.compact import selection_plan
from jvidprune.ops.select import rank_descending
from jvidprune.ops.sink import SinkRule
from jvidprune.reducers.counting import Terms
from jvidprune.reducers.counts import half_even
from jvidprune.reducers.full import Full, FullBudget
from jvidprune.reducers.protocol import MethodInfo, check_ratio
from jvidprune.tokens import InnerStage, Kept, Layout, Plan, VideoTokens
from jvidprune.weights import AnyWeights, Weights


@dataclasses.dataclass(frozen=True)
class HalfEven(Kept):
    """max(1, round(n * share)) tokens, halves to even."""

    def count(self, n: int, prompt: int | None = None) -> int:
        """How many of n tokens stay."""
        return min(n, half_even(n, self.share))


@dataclasses.dataclass(frozen=True)
class CoViPAL(Full):
    """Keeps the tokens that a trained module scores highest, given the question.

    Where the module was trained decides where it acts: in front of the language model, or before one of its layers.

    Attributes:
      module: its weights, from `module.module_weights`, or their file.
      scope: who sees whom in the module: all tokens of the `video`, or those of one `frame`, each with the question,
        for long videos. The count is that of the video in both. Inside the language model it is always the video.
    """

    module: AnyWeights | None = None
    scope: Literal["video", "frame"] = "video"

    reads_text_mask = True

    def __post_init__(self) -> None:
        """Refuses weights that are no module, and a scope that it does not have.

        Raises:
          JvidpruneError: that.
        """
        if self.module is not None and self.place > 0 and self.scope == "frame":
            raise JvidpruneError(
                f"this module of CoViPAL acts before layer {self.place} and reads all frames there, so scope='frame' "
                "has no meaning."
            )

    @property
    def place(self) -> int:
        """Layer that the module acts in front of; 0 without any."""
        return 0 if self.module is None else made_of(self.module)[2]

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The question in front of the language model; inside it the prompt has it."""
        return frozenset({"text"} if self.place == 0 else ())

    @property
    def _module(self) -> Weights:
        if self.module is None:
            raise JvidpruneError(
                "CoViPAL has no trained module and nothing to choose by: name its file, as in "
                "covipal(module='pruner.safetensors'), which jvidprune train covipal makes."
            )
        return self.module

    def prepare(self, video: VideoTokens, *, capacity: int, sink: SinkRule | None = None) -> Int[Array, "T*N"]:
        """Place of every token from the best one on, T * N for padding; a sink rule has no place here.

        Raises:
          JvidpruneError: no module, or one for tokens of another width.
        """
        weights = self._module
        frames, n, dim = video.features.shape
        real = jnp.repeat(video.frame_mask, n)
        if self.place > 0:
            return jnp.where(real, jnp.cumsum(real) - 1, frames * n)
        text = video.evidence["text"]
        asked = video.evidence.get("text_mask", jnp.ones(text.shape[0], bool))
        lists = 1 if self.scope == "video" else frames
        rows = (lists, text.shape[0])
        columns = video.grid[1]
        token = jnp.arange(frames * n)
        places = jnp.stack([token // n, token % n // columns, token % n % columns], axis=-1)

        def beside(own: Array, other: Array) -> Array:
            return jnp.concatenate([own, jnp.broadcast_to(other, (*rows, *own.shape[2:]))], axis=1)

        x = beside(video.features.reshape(lists, -1, dim), text.astype(video.features.dtype)[None])
        visual = beside(real.reshape(lists, -1), jnp.zeros((), bool))
        words = beside(jnp.zeros_like(real).reshape(lists, -1), asked[None])
        heads, grid, _ = made_of(weights)
        module = module_of(parameters_of(weights), heads, grid)
        found = module(x, visual, words, beside(places.reshape(lists, -1, 3), jnp.zeros((), jnp.int32)))
        score = found[:, : frames * n // lists].reshape(-1)
        return jnp.where(real, rank_descending(jnp.where(real, score, -jnp.inf)), frames * n)

    def decide(self, shared: Array, budget: FullBudget, *, capacity: int) -> Plan:
        """The first tokens of that order, ascending by id."""
        return selection_plan(shared < jnp.asarray(budget.tokens, jnp.int32), capacity)

    def budget(self, layout: Layout, ratio: float) -> FullBudget:
        """k of the video in front of the language model; all tokens where the module acts inside it.

        Raises:
          JvidpruneError: no module, or an impossible ratio.
        """
        assert self._module is not None
        ratio = check_ratio(ratio)
        return FullBudget(np.int32(half_even(layout.total, ratio) if self.place == 0 else layout.total))

    def capacity(self, layout: Layout, ratio: float) -> int:
        """Exactly those; padding frames included where all tokens stay."""
        return int(self.budget(layout, ratio).tokens) if self.place == 0 else layout.slots * layout.tokens

    def inner(self, ratio: float) -> tuple[InnerStage, ...]:
        """The cut in front of the module's layer, where it has one."""
        if self.module is None or self.place == 0:
            return ()
        heads, grid, place = made_of(self.module)
        weights = Weights.of(parameters_of(self.module), self.module.path)
        return (InnerStage(place, ModuleTopK(heads, grid), HalfEven(check_ratio(ratio)), weights=weights),)

    def flops(self, layout: Layout, width: int, ratio: float) -> Terms:
        """The module over all visual tokens, the question left out."""
        if self.module is None:
            return {}
        arrays = self.module.arrays
        inside, hidden = arrays["enter.kernel"].shape[1], arrays["blocks.0.mlp.fc1.kernel"].shape[1]
        blocks = len({name.split(".")[1] for name in arrays if name.startswith("blocks.")})
        seen = layout.total if self.scope == "video" else layout.tokens
        return {
            "projection": 2.0 * layout.total * width * inside,
            "attention of the module": 4.0 * blocks * layout.total * seen * inside,
            "matrices of the module": 2.0 * blocks * layout.total * (4 * inside**2 + 2 * inside * hidden),
        }

    # No checkpoint is public.
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}

    info: ClassVar[MethodInfo] = MethodInfo(
        name="covipal",
        title="CoViPAL",
        paper="2508.17243",
        summary="Keeps the visual tokens that a small trained module scores highest, from these tokens and the "
        "question.",
        nested=True,
        merges=False,
        exact=True,
        quirks=(
            "size, losses and schedule of the module are ours, since the paper's are not public (no option)",
            "to the module the question is a bag of tokens; visual tokens have positions unless it was made with "
            "grid=False (no option of the method)",
        ),
        provenance="reconstruction",
    )
