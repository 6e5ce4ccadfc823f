"""Published video benchmarks from local copies: their annotation layouts, prompts as lmms-eval has them, videos found.

Layouts and prompts are stated from memory of the dataset cards and of lmms-eval's task files, not read from copies of
them; each module says what it expects. A file that lacks an expected column is refused with the columns it has.
"""

from jvidprune.evals.datasets.entry import AskedQuestion
from jvidprune.evals.datasets.registry import Prompts, answer_tokens, names, open_dataset, prompt_presets
from jvidprune.evals.datasets.task import VideoTask
