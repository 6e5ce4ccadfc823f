"""Published video benchmarks from local copies: their annotation layouts, the wordings they are asked in, videos found.

Each module says what it expects of files, and where that and the wordings were read: columns and prompts in the task
files of lmms-eval 0.7.3, unless it says otherwise. A test compares both with that code (`tests/integrations`). A row
that lacks a column that is needed is left out and listed with the columns it has.
"""

from jvidprune.evals.datasets.entry import AskedQuestion
from jvidprune.evals.datasets.registry import Prompts, answer_tokens, names, open_dataset, prompt_presets
from jvidprune.evals.datasets.task import VideoTask
