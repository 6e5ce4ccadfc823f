"""What the reducers' `flops(layout, width, ratio)` share: which operations are counted, and the terms that recur.

Inner products over the feature width D count 2 D each, a pass over all features 2 for a product and a sum. Sorting,
comparing, and anything of size (T, N) alone is left out. Where the work depends on the video, what is counted is what
the method's bound allows and its name ends in "(at most)". T frames, N tokens a frame, M before pooling.
"""

from jvidprune.tokens import Layout

Terms = dict[str, float]
"""FLOPs by what they are spent on."""


class TokenWidth(int):
    """D, numbers of a token, with what else of a model some methods read. It is the int D in every other respect.

    Attributes:
      keys: width of the evidence "keys", 0 where that is not known.
      levels: DeepStack levels of a token, D numbers each.
    """

    keys: int
    levels: int

    def __new__(cls, width: int, *, keys: int = 0, levels: int = 0) -> "TokenWidth":
        made = super().__new__(cls, width)
        made.keys, made.levels = keys, levels
        return made


def keys_of(width: int) -> int:
    """Width of the evidence "keys"; 0 of a plain number."""
    return width.keys if isinstance(width, TokenWidth) else 0


def levels_of(width: int) -> int:
    """DeepStack levels; 0 of a plain number."""
    return width.levels if isinstance(width, TokenWidth) else 0


def gram(layout: Layout, width: int) -> float:
    """Inner products of all pairs of tokens of one frame."""
    return 2.0 * layout.tokens**2 * width


def neighbours(layout: Layout, width: int) -> float:
    """Cosines of every token with its place in the frame before: products of pairs, and squared norms."""
    return 2.0 * (2 * layout.frames - 1) * layout.tokens * width


def sums(layout: Layout, width: int, slots: int = 1) -> float:
    """Weighted sums of the tokens into their rows, where a token goes to at most `slots` rows."""
    return 2.0 * slots * layout.total * width
