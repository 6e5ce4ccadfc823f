"""The simplest prompt: one run of visual tokens between two texts, positions counted from 0."""

import numpy as np

from jvidprune.llm.prompts.slots import Run, interleave, laid_out


def one_run(before, after, visual, *, max_positions, reserve):
    """The slots of `before` text tokens, the rows `visual` (-1 for a newline) and `after` text tokens."""
    texts = [np.zeros(before, np.int64), np.zeros(after, np.int64)]
    run = Run(visual, np.arange(len(visual)), len(visual))
    return laid_out(interleave(texts, [run]), max_positions=max_positions, reserve=reserve)
