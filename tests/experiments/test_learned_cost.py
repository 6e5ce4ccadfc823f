"""Scripts of the transport laboratory: a small run ends in its files and goes on; what is moved onto kept tokens."""

import csv
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.places import REPOSITORY

import jvidprune
from experiments import learned_cost
from experiments.best_composition import CONTROLS, MOVED, Transported, committed, line_of, titled
from experiments.learned_cost_memory import lowered
from experiments.transport_ablation import AOT_ITSELF, MEANS, READING
from jvidprune.evals.markdown import grid
from jvidprune.ops.transport import Rows
from jvidprune.reducers import VidCom2
from jvidprune.reducers.aot.intra import positions
from jvidprune.synthetic import synthetic_tokens
from jvidprune.training.transports import CostChoice, CostTrainer

EXPERIMENTS = REPOSITORY / "experiments"


@pytest.mark.slow
def test_a_small_run_ends_in_table_curve_figure_and_page_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(learned_cost, "BASES", (MEANS,))
    sizes = ("--clips", "2", "--train-clips", "2", "--seeds", "2", "--steps", "2", "--batch", "1", "--log", "1")
    kinds = ("--costs", "Mahalanobis", "--objectives", "reconstruction")
    places = ("--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["learned_cost", *sizes, *kinds, *places])
    monkeypatch.setattr(learned_cost, "REFERENCES", (AOT_ITSELF,))
    learned_cost.main()
    page = (tmp_path / "out" / "learned_cost.md").read_text()
    assert "2 test clips with 6 questions" in page
    with (tmp_path / "out" / "learned_cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"{MEANS}, Mahalanobis by reconstruction, seed {seed}" for seed in (0, 1)]
    assert [row["setting"] for row in rows] == [name for name in (MEANS, AOT_ITSELF, *names) for _ in range(3)]
    errors = {(row["setting"], row["ratio"]): float(row["error"]) for row in rows}
    assert errors[names[0], "0.1"] != errors[names[1], "0.1"] != errors[MEANS, "0.1"]
    mean = (errors[names[0], "0.1"] + errors[names[1], "0.1"]) / 2 - errors[MEANS, "0.1"]
    line = page.partition("own cost: error\n")[2].partition(f"| {MEANS}")[2].splitlines()[0]
    assert float(line.split("|")[2].strip(" *").split()[0]) == pytest.approx(mean, abs=2e-3)
    with (tmp_path / "out" / "learned_cost_curve.csv").open(newline="") as file:
        assert [(row["run"], row["step"]) for row in csv.DictReader(file)] == [(n, s) for n in names for s in "12"]
    assert (tmp_path / "out" / "learned_cost.svg").read_text().count("<svg") == 1
    # Again: nothing is trained or measured, and what a person wrote stays.
    (tmp_path / "out" / "learned_cost.md").write_text(f"{page}\n{READING}mine\n")
    monkeypatch.setattr(CostTrainer, "batch", None)
    monkeypatch.setattr(learned_cost.Laboratory, "records", None)
    learned_cost.main()
    assert (tmp_path / "out" / "learned_cost.md").read_text() == f"{page}\n{READING}mine\n"


def test_the_page_of_compositions_has_every_row_of_the_committed_table():
    page = (EXPERIMENTS / "best_composition.md").read_text()
    again = page.partition("## The comparison, on test clips")[2]
    known = committed(EXPERIMENTS / "retention_all.csv")
    best = [row for row in known if row["method"] not in CONTROLS][:4]
    for row in best:
        assert f"\n| {titled(row['method'])} | {line_of(row)[1].partition(' ')[0]} " in again
    others = [line_of(row) for row in known if row not in best]
    assert "\n".join(grid(["method", "answers", "tokens"], others).splitlines()[2:]) in again


@pytest.mark.slow
def test_dropped_tokens_move_onto_kept_ones_by_the_plan():
    video = synthetic_tokens(seed=1, frames=3, grid=(4, 4), dim=8, scenes=2, unpooled_grid=(8, 8))
    base, x = VidCom2(), np.asarray(video.features, np.float64)
    kept = jvidprune.reduce(base, video, 0.25)
    still = jvidprune.reduce(Transported(base, scale=0.0), video, 0.25)
    np.testing.assert_array_equal(still.index, kept.index)
    np.testing.assert_allclose(still.tokens, kept.tokens, atol=1e-5)
    moved = jvidprune.reduce(Transported(base, scale=2.0), video, 0.25)
    np.testing.assert_array_equal(moved.index, kept.index)
    place = jnp.asarray(positions(video.grid))
    for frame in range(3):
        mine = [int(i) % 16 for i in kept.index[: int(kept.count)] if int(i) // 16 == frame]
        others = [i for i in range(16) if i not in mine]
        sides = [
            Rows(
                video.features[frame][ids],
                place[ids],
                jnp.zeros(len(ids)),
                jnp.ones(len(ids)),
                jnp.ones(len(ids), bool),
            )
            for ids in (np.array(others), np.array(mine))
        ]
        plan = np.asarray(MOVED.solver(*MOVED.problem(*sides)).plan, np.float64)
        wanted = (x[frame][mine] + 2 * plan.T @ x[frame][others]) / (1 + 2 * plan.sum(0)[:, None])
        rows = [row for row, i in enumerate(kept.index[: int(kept.count)]) if int(i) // 16 == frame]
        np.testing.assert_allclose(moved.tokens[np.array(rows)], wanted, atol=1e-4)


@pytest.mark.slow
def test_memory_of_a_step_is_that_of_its_program():
    import jax

    choice = CostChoice(cost="mahalanobis", clips=1, draws=1, rank=2)
    sizes = []
    for width in (8, 16):
        program = lowered(choice, width, 8, 9, 5, jax.local_devices(backend="cpu")[0]).compile()
        memory: Any = program.memory_analysis()
        assert memory.temp_size_in_bytes > 0
        sizes.append(memory.argument_size_in_bytes)
    # Features before and behind pooling, and three times (weights, two moments) the projection.
    assert sizes[1] - sizes[0] == pytest.approx(4 * 8 * (8 * (81 + 25) + 3 * 2), abs=64)
