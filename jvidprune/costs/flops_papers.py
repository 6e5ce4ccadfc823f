"""How the papers of token reduction count the language model's prefill, to compare with their tables.

Both formulas count visual tokens alone, no text and no head; a product and a sum are one operation in their linear
terms, and the gated MLP's third matrix is left out by the first. They are kept as the papers have them.
"""

from collections.abc import Callable, Sequence

from jvidprune.costs.flops_model import Segment
from jvidprune.models.decoder_config import DecoderConfig


def fastv_layer(text: DecoderConfig, n: float) -> float:
    """4 n D^2 + 2 n^2 D + 2 n D m of FastV (2403.06764, section 3.3); the tables of HoliTom and AOT.

    LLaVA-OneVision-7B at 6272 tokens: 40.8 T.
    """
    return 4 * n * text.width**2 + 2 * n**2 * text.width + 2 * n * text.width * text.mlp


def fastvid_layer(text: DecoderConfig, n: float) -> float:
    """2 n D (kv heads * head dim) + 2 n D^2 + 2 n^2 D + 3 n D m of FastVID (2503.11187).

    LLaVA-OneVision-7B at 6272 tokens: 48.8 T.
    """
    kv = text.kv_heads * text.head_dim
    return 2 * n * text.width * (kv + text.width) + 2 * n**2 * text.width + 3 * n * text.width * text.mlp


CONVENTIONS: dict[str, Callable[[DecoderConfig, float], float]] = {"fastv": fastv_layer, "fastvid": fastvid_layer}
"""Operations of one layer by convention."""


def paper_prefill(text: DecoderConfig, parts: Sequence[Segment], convention: str = "fastv") -> list[float]:
    """Prefill of each segment in a convention of the papers, from its visual tokens."""
    layer = CONVENTIONS[convention]
    return [(part.stop - part.start) * layer(text, part.visual) for part in parts]
