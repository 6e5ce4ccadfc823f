"""The exported benchmark as tasks of lmms-eval: what its YAML files name, and the files themselves.

`jvidprune_exported` generates answers, `jvidprune_exported_choice` compares the likelihoods of the letters.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvidprune.evals.extract import is_correct
from jvidprune.evals.items import LETTERS
from jvidprune.files import atomic_output

NAME = "jvidprune_exported"

_GENERATE = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function jvidprune.procedural.lmms_task.doc_to_visual
doc_to_text: !function jvidprune.procedural.lmms_task.doc_to_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
  do_sample: false
process_results: !function jvidprune.procedural.lmms_task.process_results
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""
_CHOOSE = """\
task: {name}_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_visual: !function jvidprune.procedural.lmms_task.doc_to_visual
doc_to_text: !function jvidprune.procedural.lmms_task.doc_to_text
doc_to_choice: !function jvidprune.procedural.lmms_task.doc_to_choice
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def write_tasks(folder: Path, questions: Sequence[Mapping[str, Any]]) -> Path:
    """Writes `lmms_eval/` with the tasks' YAML files and questions into the folder of an export.

    The files name the videos by their present places: export again where the folder has moved.

    Args:
      folder: of the export.
      questions: rows of its annotations.json.

    Returns:
      what lmms-eval is given as --include_path.
    """
    target = folder.resolve() / "lmms_eval"
    rows = [
        {key: row[key] for key in ("id", "category", "kind", "options", "answer", "prompt")}
        | {"video": str(folder.resolve() / row["video"])}
        for row in questions
    ]
    parts = (("", _GENERATE, rows), ("_choice", _CHOOSE, [row for row in rows if row["kind"] == "choice"]))
    for suffix, text, part in parts:
        data = target / f"questions{suffix}.jsonl"
        _write(data, "".join(json.dumps(row) + "\n" for row in part))
        _write(target / f"{NAME}{suffix}.yaml", text.format(name=NAME, data=json.dumps(str(data))))
    return target


def _write(path: Path, text: str) -> None:
    with atomic_output(path) as part:
        part.write_text(text, encoding="utf-8")


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """The video's path."""
    return [doc["video"]]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """What the model is asked, options and instruction included."""
    return doc["prompt"]


def doc_to_choice(doc: Mapping[str, Any]) -> list[str]:
    """The letters of the options."""
    return list(LETTERS[: len(doc["options"])])


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 for a right answer, read as our own runner reads it."""
    return {"accuracy": float(is_correct(results[0], doc["answer"], doc["kind"], doc["options"]))}
