"""`jvidprune methods`: the reducers and what they promise."""

from jvidprune.cli.options import OUTPUT, Common, print_json


def methods(*, out: Common = OUTPUT) -> None:
    """List the reducers: paper, the evidence they need, whether they merge and nest."""
    from dataclasses import asdict

    from jvidprune.reducers import registry

    names = (*registry.names(), *registry.combinators())
    rows = [asdict(registry.info(name)) | {"needs": sorted(registry.get(name).needs)} for name in names]
    if out.json:
        print_json(rows)
    elif out.quiet:
        print("\n".join(row["name"] for row in rows))
    else:
        out.console().methods(rows)
