"""What the entry-point group `lmms_eval.models` is told about this package."""

from typing import Any


def manifest() -> Any:
    """lmms-eval's manifest of the model `jvidprune`; its class is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest("jvidprune", simple_class_path="jvidprune.integrations.lmms_model.JvidpruneModel")
