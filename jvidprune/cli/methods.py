"""`jvidprune methods`: the reducers and what they promise."""

from jvidprune.cli.options import OUTPUT, Common, print_json


def methods(*, out: Common = OUTPUT) -> None:
    """List the reducers: paper, the evidence they need, whether they merge and nest."""
    from dataclasses import asdict

    from jvidprune.reducers.registry import listing

    rows = [asdict(info) | {"needs": sorted(needs)} for info, needs in listing()]
    if out.json:
        print_json(rows)
    elif out.quiet:
        print("\n".join(row["name"] for row in rows))
    else:
        out.console().methods(rows)
