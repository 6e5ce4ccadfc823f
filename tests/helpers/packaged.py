"""What the packaged model's files say of its training and of its answers."""

import csv
import json

from experiments.tiny.record import RECORD
from jvidprune.evals.tasks import MEASURED
from jvidprune.models.embedded import EMBEDDED


def recipe():
    """Sizes, stages and fingerprints of the clips ("task", "measured_on"), from a record of either recipe."""
    record = json.loads((EMBEDDED / RECORD).read_text(encoding="utf-8"))
    return record["recipe"] | record if "recipe" in record else record | {"task": record["benchmark"]}


def accuracies():
    """By category, "all" among them, the row of what it answers on all tokens of held-out clips."""
    with (EMBEDDED / MEASURED).open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["given"], row["kind"]) == ("all tokens", "all")]
    return {row["category"]: row for row in rows}
