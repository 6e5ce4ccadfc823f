"""The table of programs compiled for TPUs: run in pieces, complete in what it names, every message explained."""

import json
from pathlib import Path

import pytest

from experiments.perf import tpu, tpu_models
from experiments.perf.tpu_reasons import NOT_KNOWN, reason
from experiments.perf.tpu_tables import table
from jvidprune.errors import JvidpruneError
from jvidprune.models import family as families
from jvidprune.models.checkpoint.load import family_of
from jvidprune.models.checkpoint.published import PUBLISHED

FOLDER = Path(tpu.__file__).parent
ROW = {
    "compile_s": 1.0,
    "compile_cpu_s": 1.0,
    "temporaries": 2**20,
    "outputs": 2**20,
    "main": 1e8,
    "near": 1e8,
    "uncounted": 0,
    "xla": 2e8,
}


@pytest.fixture
def asked(monkeypatch):
    """Keys of the rows that were compiled, by a compiler that is not there."""
    found = []

    def run_cell(cell):
        found.append(cell.key)
        if cell.method == "evs":
            raise JvidpruneError("no such ratio.")
        return ROW

    monkeypatch.setattr(tpu, "run_cell", run_cell)
    return found


def test_a_rerun_compiles_what_is_missing_and_names_what_was_not_run(asked, tmp_path):
    files = {"json_file": tmp_path / "rows.json", "markdown": tmp_path / "rows.md"}
    tpu.main(("random",), ("reducers",), **files)
    assert len(asked) == 2
    tpu.main(("random", "evs"), ("reducers",), **files)
    assert [key.split()[0] for key in asked] == ["random", "random", "evs", "evs"]
    tpu.main(("tome",), ("reducers",), seconds=-1, **files)
    assert len(asked) == 4
    rows, text = json.loads(files["json_file"].read_text())["rows"], files["markdown"].read_text()
    assert list(rows) == asked
    assert text.count("no such ratio.") == 2
    shown, missing = text.split("## Not run")
    assert "- tome ratios=8 T=32 N=196 D=3584 v5e:2x2\n" in missing
    assert not any(f"- {key}\n" in missing for key in asked)
    assert "| random | 1 | 0.10 | 0.20 | 0.20 | 1 | 1 | 1 | 1 |" in shown


def test_methods_inside_the_language_model_have_no_row_of_their_own():
    names = tpu.reducer_names()
    assert {"random", "aot", "information_horizon"} <= set(names)
    assert not {"none", "fastv", "mod"} & set(names)


def test_every_family_is_compiled_on_every_slice_and_one_step_trains():
    cells = tpu_models.model_cells()
    assert (
        len({cell.key for cell in cells})
        == len(cells)
        == 3 * 4 * len(tpu_models.MODELS) + 1 + len(tpu_models.WITH_EVIDENCE)
    )
    assert {cell.where for cell in cells} == set(tpu_models.MESHES)
    assert {family_of(PUBLISHED[model]) for model in tpu_models.MODELS} <= set(families.names())


def message(kind, among, *, put=1e8, count=4.0, largest=1e8, origin="jit(f)/while/body/dot_general"):
    return {"kind": kind, "origin": origin, "among": among, "count": count, "put": put, "largest": largest}


def test_messages_are_told_apart_by_the_axis_that_they_cross():
    row = "step llava-onevision-7b stts ratio=0.5 T=32 v6e:16x16 data=4,fsdp=16,tensor=2"
    assert "partial sums" in reason(row, message("all-reduce", 2))
    assert "experts" in reason(row, message("all-reduce", 2, origin="jit(f)/while/body/shard_map/psum"))
    assert reason(row, message("all-gather", 16)).startswith("weights of a layer")
    assert "gradients" in reason(row, message("reduce-scatter", 16))
    assert "a few numbers" in reason(row, message("all-reduce", 128, put=64))
    assert reason(row, message("all-to-all", 16)) == NOT_KNOWN
    # No copy of a model has a reason to gather a weight matrix where fsdp divides none.
    prefill = "prefill llava-onevision-7b none ratio=1 T=32 v5e:2x4 data=2,tensor=4"
    assert reason(prefill, message("all-gather", 4)) == NOT_KNOWN


def test_the_committed_table_is_that_of_the_rows_and_explains_every_message():
    content = json.loads((FOLDER / "tpu.json").read_text())
    text, _, missing = (FOLDER / "tpu.md").read_text().partition("## Not run")
    assert NOT_KNOWN not in text
    assert text.strip() == table(content, []).strip()
    # Methods that came since the table was made are in neither.
    assert not [key for key in content["rows"] if f"- {key}\n" in missing]
