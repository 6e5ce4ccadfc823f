"""Question answering on videos: what a task is, and a procedural benchmark whose every answer is known."""

from jvidprune.bench.items import Item, Question, Task
from jvidprune.bench.procedural import Procedural, Sample, vocabulary
