"""What `jvidprune models` says of each family."""

from jvidprune.models.family import families


def listing() -> list[dict[str, str]]:
    """One row a family that checkpoints load for: name, paper, published checkpoints."""
    return [
        {"family": one.name, "paper": one.paper, "checkpoints": ", ".join(one.checkpoints) or "-"} for one in families()
    ]
