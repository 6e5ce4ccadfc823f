"""The project's own training: a small LLaVA-OneVision on the procedural benchmark, with optax and orbax."""
