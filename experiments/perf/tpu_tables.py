"""`tpu.json` as markdown."""

from typing import Any

from jvidprune.reducers import names

from .tpu_reasons import reason

Rows = dict[str, dict[str, Any]]

COLUMNS = ["HBM GB", "with VMEM", "XLA's count", "temporaries MiB", "outputs MiB", "compile s", "CPU s"]
MODEL_COLUMNS = ["weights GB", "temporaries MiB", "HBM GB", "sent MB", "fits", "CPU s"]

MOST_HBM, MOST_TEMPORARIES, MOST_QUOTIENT, MOST_COMPILE = 0.6e9, 300 * 2**20, 3.0, 20.0
"""Targets: bytes of one ratio, temporaries, eight ratios over one, CPU seconds of compiling eight ratios."""

WHY = (
    "AOT: frames of 27 x 27 tokens lie side by side in a TPU's memory, and its programs go frame by frame. One ratio "
    "reads them three times as they lie. Of eight ratios each reads them to form its tokens (1.34 GB), for which XLA "
    "copies the 167 MB (0.33 GB). That copy and the weights of all ratios (147 MB, written once and read three times) "
    "are most of the temporaries. Without the copy eight ratios move 2.76 GB and hold 231 MiB, but the compiler's "
    "estimates of cycles add up to 1.5 times as many, since a frame is then one row of every tile.",
    "Scissor: each ratio looks for a threshold of its own by bisection, and every round forms the means of the "
    "components that it finds. The table counts one round, and one tile of comparisons in it. On random tokens of "
    "scenes 13 or 14 of 15 or 16 rounds form means, of up to 6,272 components: the numbers are far below what runs.",
    "Compile times: matrix products and reductions over (ratios, T, N, N) arrays take 2 to 4 s of CPU time each, "
    "sorts, gathers and scatters of this size less than 0.5 s.",
)
"""What was found about the methods above the targets (NOTES.md tells how)."""


def table(content: dict[str, Any], wanted: list[str]) -> str:
    """All rows, what is above the targets, and the rows of `wanted` that have not been run."""
    rows: Rows = content["rows"]
    of_models = {key: row for key, row in rows.items() if _is_model(key)}
    singles = {key: row for key, row in rows.items() if not _is_model(key) and "batch=" not in key}
    batches = {key: row for key, row in rows.items() if "batch=" in key}
    lines = [
        f"# Programs compiled for TPUs and not run (jax {content['jax']})\n",
        "`python -m experiments.perf.tpu` makes this file. Bytes are the sum of bytes read and written. Three "
        "columns count them: HBM, HBM and VMEM together, and XLA's cost analysis. The first two count the body of a "
        "loop as often as it runs; XLA's analysis counts each body once. If data decide how often a loop runs, the "
        "program gives a number. A star marks programs with loops without such a number, which are counted once. CPU "
        "seconds are those of the compiler's threads, on a machine of two cores that ran other work as well. With "
        "more other work the same program took up to 1.35 times as many. Wall-clock seconds are from the same "
        "machine.\n",
        "## Reducers on one v5e chip\n",
        "T=32, N=196, D=3584, bfloat16, batch 1. The eight ratios are 0.05 to 0.40, and one ratio is 0.30. Numbers "
        "in brackets are from commit 287fd3c: there the output had room only for the tokens asked for, while "
        "`reduce` now rounds the room up to the next eighth of the video. Eight / one: HBM bytes of eight ratios "
        "without their outputs, divided by all HBM bytes of one. Methods that prune only inside the language model "
        "form no tokens before it and have no row.\n",
        *_reducers(singles, content["before"]),
        *_above(singles),
    ]
    if batches:
        lines += ["\n## Eight videos in one program, ratio 0.30\n", *_reducers(batches, {})]
    if of_models:
        lines += _models(of_models)
    missing = [key for key in wanted if key not in rows]
    if missing:
        lines += ["\n## Not run\n", f"{len(missing)} of {len(wanted)} rows:\n", *(f"- {key}" for key in missing)]
    return "\n".join(lines) + "\n"


def _is_model(key: str) -> bool:
    return key.split()[0] not in names()


def _reducers(rows: Rows, before: Rows) -> list[str]:
    lines = [
        f"| method | ratios | {' | '.join(COLUMNS)} | eight / one |",
        f"| --- | ---: | {' | '.join('---:' for _ in COLUMNS)} | ---: |",
    ]
    for key in sorted(rows):
        row, method, ratios = rows[key], key.split()[0], key.split()[1].partition("=")[2]
        if "refused" in row:
            lines.append(f"| {method} | {ratios} | {row['refused']} |{' |' * len(COLUMNS)}")
            continue
        cells = []
        for name, unit, digits in (
            ("main", 1e9, 2),
            ("total", 1e9, 2),
            ("xla", 1e9, 2),
            ("temporaries", 2**20, 0),
            ("outputs", 2**20, 0),
            ("compile_s", 1, 0),
            ("compile_cpu_s", 1, 0),
        ):
            pair = row, before.get(key)
            now, then = (_value(one, name) / unit if one and name in (*one, "total") else None for one in pair)
            star = "*" if name in ("main", "total") and row["uncounted"] else ""
            cells.append(f"{now:.{digits}f}{star}" + ("" if then is None else f" ({then:.{digits}f})"))
        cells.append(" ".join(_quotients(rows, before, key)))
        lines.append(f"| {method} | {ratios} | {' | '.join(cells)} |")
    return lines


def _value(row: dict[str, Any], name: str) -> float:
    return row["main"] + row["near"] if name == "total" else row[name]


def _quotients(rows: Rows, before: Rows, key: str) -> list[str]:
    found = [_quotient(group, key) for group in (rows, before)]
    return [form.format(value) for form, value in zip(("{:.1f}", "({:.1f})"), found, strict=True) if value is not None]


def _quotient(rows: Rows, key: str) -> float | None:
    single = key.replace("ratios=8", "ratios=1")
    eight, one = rows.get(key), rows.get(single)
    if single == key or not eight or not one or "refused" in one or "refused" in eight:
        return None
    return (eight["main"] - eight["outputs"]) / one["main"]


def _above(rows: Rows) -> list[str]:
    """What exceeds a target, one line a target."""
    run = {key: row for key, row in sorted(rows.items()) if "refused" not in row}

    def those(unit: float, digits: int, limit: float, value: Any) -> str:
        found = {key: value(key, row) for key, row in run.items()}
        over = [
            f"{key.split()[0]} ({key.split()[1].partition('=')[2]}) {amount / unit:.{digits}f}"
            for key, amount in found.items()
            if amount is not None and amount > limit
        ]
        return ", ".join(over) or "none"

    ones = those(1e9, 2, MOST_HBM, lambda key, row: row["main"] if "ratios=1" in key else None)
    eights = those(1, 1, MOST_QUOTIENT, lambda key, row: _quotient(run, key))
    held = those(2**20, 0, MOST_TEMPORARIES, lambda key, row: row["temporaries"])
    slow = those(1, 0, MOST_COMPILE, lambda key, row: row["compile_cpu_s"] if "ratios=8" in key else None)
    return [
        "\nAbove the targets:\n",
        f"- one ratio at most 0.6 GB of HBM: {ones}",
        f"- eight ratios at most 3 times one and their outputs: {eights}",
        f"- temporaries at most 300 MiB: {held}",
        f"- eight ratios compiled in at most 20 s of CPU time: {slow}\n",
        *(f"{text}\n" for text in WHY),
    ]


def _models(rows: Rows) -> list[str]:
    lines = [
        "\n## Models on slices\n",
        "bfloat16, 32 frames, random draws in place of a method at 10 %, whose prompt is as long. Bytes are of one "
        "chip; sent are those that it puts into all collectives. On v5p and v6e every copy of the model reads a prompt "
        "of its own. A training step holds float32 parameters and two moments. A kernel counts what it is given and "
        "returns, once.\n",
        f"| program | model | ratio | slice | mesh | prompt | {' | '.join(MODEL_COLUMNS)} |",
        f"| --- | --- | ---: | --- | --- | ---: | {' | '.join('---:' for _ in MODEL_COLUMNS)} |",
    ]
    reasons: dict[tuple[str, str, str], list[float]] = {}
    for key, row in rows.items():
        stage, model, method, ratio, _, where, mesh = key.split()
        shown = f"{stage}, evidence of {method}" if stage == "encode" and method != "none" else stage
        head = f"| {shown} | {model} | {ratio.partition('=')[2]} | {where} | {mesh}"
        if "refused" in row:
            lines.append(f"{head} | {row['refused']} |{' |' * len(MODEL_COLUMNS)}")
            continue
        prompt = f"{row['batch']} x {row['prompt']:,}" if row["batch"] > 1 else f"{row['prompt']:,}"
        fits = "yes" if not row["over"] else f"no, {row['over'] / 2**30:.1f} GiB over"
        cells = [
            f"{row['weights'] / 1e9:.2f}",
            f"{row['temporaries'] / 2**20:,.0f}",
            f"{row['main'] / 1e9:.1f}",
            f"{sum(m['put'] for m in row['messages']) / 1e6:,.0f}",
            fits,
            f"{row['compile_cpu_s']:.0f}",
        ]
        lines.append(f"{head} | {'-' if stage == 'encode' else prompt} | {' | '.join(cells)} |")
        for message in row["messages"]:
            why = stage, message["kind"], reason(key, message)
            reasons.setdefault(why, []).append(message["put"] / 1e6)
    lines += [
        "\nWhy chips send each other what they send, over all rows above (kind and origin of every message stand in "
        "tpu.json):\n",
        "| program | collective | why | MB in a row, at most |",
        "| --- | --- | --- | ---: |",
    ]
    lines += [f"| {stage} | {kind} | {why} | {max(put):,.2f} |" for (stage, kind, why), put in reasons.items()]
    return lines
