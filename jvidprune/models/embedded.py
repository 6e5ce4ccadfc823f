"""Where the embedded model lies: a tiny LLaVA-OneVision, trained on the procedural benchmark, inside the package."""

from pathlib import Path

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"
"""Checkpoint folder in the published layout; `record.json` beside the weights tells how they came to be."""
