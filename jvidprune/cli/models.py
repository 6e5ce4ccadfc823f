"""`jvidprune models`: the model families."""

from jvidprune.cli.options import OUTPUT, Common, print_json


def models(*, out: Common = OUTPUT) -> None:
    """List the model families that checkpoints can be loaded for."""
    from jvidprune.models.listing import families

    rows = families()
    if out.json:
        print_json(rows)
    elif out.quiet:
        print("\n".join(row["family"] for row in rows))
    else:
        out.console().models(rows)
