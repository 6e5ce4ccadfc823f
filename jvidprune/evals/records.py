"""What a whole record of a sweep holds: a line that lost or changed a field is made again, not read."""

import math
from collections.abc import Iterable
from typing import Any

_SAMPLE = {"clip": str, "question": str, "method": str, "category": str, "prediction": str, "answer": str}
_COUNTS = ("kept", "visual", "prompt")
_COSTS = ("encode", "reduce", "compile", "memory", "tflops", "prefill_tflops")
_ALONE = ("prefill", "generate")
_LATER = ("newlines", "markers", "layer_tokens", "layer_all", "kv_bytes", "setting", "target", "reached")
"""Numbers that records of older versions lack."""
_FAILURE = ("clip", "key", "file", "reason")


def is_sample(record: dict[str, Any]) -> bool:
    """Whether a record is that of one answer: clip, question, method, ratio, texts, correctness and token counts.

    The correctness of an open answer is None: a judge has to say.
    """
    texts = all(isinstance(record.get(name), kind) for name, kind in _SAMPLE.items())
    numbers = all(_number(record.get(name)) for name in ("ratio", *_COUNTS))
    graded = "correct" in record and isinstance(record["correct"], bool | None) and _number(record.get("iou", 0.0))
    return texts and numbers and graded


def counted(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples that are right or wrong; open answers await a judge."""
    return [record for record in records if record["correct"] is not None]


def opened(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Samples that a judge has to read."""
    return [record for record in records if record["correct"] is None]


def is_batch(record: dict[str, Any]) -> bool:
    """Whether a record is that of one method and ratio on a clip: its costs, or why it was refused."""
    if not all(isinstance(record.get(name), str) for name in ("clip", "method", "refused")):
        return False
    together = record.get("together", [])
    if not isinstance(together, list) or not all(_number(ratio) for ratio in together):
        return False
    costs = () if record["refused"] else (*_COSTS, *(name for name in (*_ALONE, *_LATER) if name in record))
    told = ("seconds",) if "seconds" in record else ()
    return all(_number(record.get(name)) for name in ("ratio", *told, *costs))


def is_failure(record: dict[str, Any]) -> bool:
    """Whether a record is that of a clip that could not be read: file and sentence."""
    return all(isinstance(record.get(name), str) for name in _FAILURE)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
