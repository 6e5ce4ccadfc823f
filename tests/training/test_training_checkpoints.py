"""Damaged checkpoints of a training run: each is told in a sentence, and the newest whole one is gone on from."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from jvidprune.errors import JvidpruneError
from jvidprune.training import checkpoints, loop
from jvidprune.training.checkpoints import DAMAGED, FOLDER, Keeping


class Numbers:
    """Batches with a place in the input: 1, 2, 3, ..."""

    def iterate(self, step, saved):
        assert saved == (None if step == 0 else {"at": step})
        while True:
            step += 1
            yield np.float32(step), {"at": step}


START = {
    "weights": jnp.arange(600.0).reshape(20, 30),
    "moments": [jnp.zeros(7), jnp.ones((3, 2))],
    "count": jnp.int32(0),
}


def update(state, batch, step):
    weights = state["weights"] * 1.5 + batch
    moments = [state["moments"][0] + weights[0, :7], state["moments"][1] * 2]
    return {"weights": weights, "moments": moments, "count": state["count"] + 1}, {"loss": weights.mean()}


def train(folder, *, placed=True, best=False, steps=6, **options):
    """A run with a checkpoint every two steps; the state it ends in and what was told."""
    notes = []
    batch = Numbers() if placed else (lambda step: np.float32(step + 1))
    keeping = Keeping(2, 3, best="score" if best else "")
    measure = loop.Measure(2, lambda state: {"score": -float(state["count"])}) if best else None
    options |= {"settings": {"a": 1}, "log": 1, "keeping": keeping, "measure": measure, "note": notes.append}
    state = loop.fit(folder, START, update, batch, steps, **options)
    return state, notes


def same(one, other):
    assert int(one["count"]) == int(other["count"])
    np.testing.assert_array_equal(one["weights"], other["weights"])
    for mine, theirs in zip(one["moments"], other["moments"], strict=True):
        np.testing.assert_array_equal(mine, theirs)


KINDS = {"placed": {"placed": True}, "best": {"placed": True, "best": True}, "stepwise": {"placed": False}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {kind: (root / kind, train(root / kind, **options)[0]) for kind, options in KINDS.items()}


def damage(path, how):
    if how == "gone":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
        path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["gone", "empty", "cut", "over"])
@pytest.mark.slow
def test_whatever_file_of_the_newest_checkpoint_is_damaged_the_run_ends_the_same(runs, tmp_path, kind, how):
    """Each file in turn; what is not needed to read the state may go unnoticed, what is read must be right."""
    whole, truth = runs[kind]
    curve = loop.read_curve(whole)
    files = sorted(file.relative_to(whole) for file in (whole / FOLDER / "6").rglob("*") if file.is_file())
    assert len(files) >= 5
    if how == "over":
        # The numbers themselves carry no checksum in orbax's files.
        files = [file for file in files if "d" not in file.parts]
    told = set()
    for number, file in enumerate(files):
        folder = shutil.copytree(whole, tmp_path / str(number))
        damage(folder / file, how)
        state, notes = train(folder, **KINDS[kind])
        same(state, truth)
        assert loop.read_curve(folder) == curve
        if notes:
            told.add(file.name)
            (note,) = notes
            assert note.startswith(f"the checkpoint of step 6 in {folder / FOLDER} is damaged (")
            assert note.endswith("training goes on from step 4.")
            assert "\n" not in note
            assert len(note) < 500 + 2 * len(str(folder))
            assert [path.name for path in (folder / DAMAGED).iterdir()] == ["6"]
            # It has been written again: the next start has nothing to say.
            assert train(folder, **KINDS[kind])[1] == []
        shutil.rmtree(folder)
    assert {"_CHECKPOINT_METADATA", "_METADATA"} <= told


@pytest.mark.parametrize("kind", KINDS)
def test_folders_that_are_gone(runs, tmp_path, kind):
    whole, truth = runs[kind]
    step = whole / FOLDER / "6"
    inner = [path for path in step.iterdir() if path.is_dir() and path.name != "metrics"]
    for number, lost in enumerate([step, *inner]):
        folder = shutil.copytree(whole, tmp_path / str(number))
        damage(folder / lost.relative_to(whole), "gone")
        state, (note,) = train(folder, **KINDS[kind])
        same(state, truth)
        assert note.startswith("the checkpoint of step 6 ")
        assert note.endswith("training goes on from step 4.")
        assert ("is not in" in note) == (lost == step)
    # A folder that was made and never filled.
    folder = shutil.copytree(whole, tmp_path / "hollow")
    shutil.rmtree(folder / FOLDER / "6")
    (folder / FOLDER / "6").mkdir()
    state, (note,) = train(folder, **KINDS[kind])
    same(state, truth)
    assert "is damaged (it has no _CHECKPOINT_METADATA)" in note


def test_several_damaged_ones_are_passed_over_and_the_oldest_is_enough(runs, tmp_path):
    whole, truth = runs["placed"]
    folder = shutil.copytree(whole, tmp_path / "run")
    damage(folder / FOLDER / "6" / "_CHECKPOINT_METADATA", "empty")
    damage(folder / FOLDER / "4" / "state", "gone")
    state, notes = train(folder)
    same(state, truth)
    assert [note.split(" in ")[0] for note in notes] == ["the checkpoint of step 4", "the checkpoint of step 6"]
    assert all(note.endswith("goes on from step 2.") for note in notes)


@pytest.mark.parametrize("kind", KINDS)
def test_none_whole_is_one_sentence_and_nothing_is_moved(runs, tmp_path, kind):
    folder = shutil.copytree(runs[kind][0], tmp_path / "run")
    for step in (2, 4, 6):
        damage(folder / FOLDER / str(step) / "_CHECKPOINT_METADATA", "cut")
    with pytest.raises(JvidpruneError) as error:
        train(folder, **KINDS[kind])
    assert str(error.value) == (
        f"none of the 3 checkpoints in {folder / FOLDER} can be read (step 6: _CHECKPOINT_METADATA is no JSON): remove "
        f"{folder} to train from the start."
    )
    assert sorted(path.name for path in (folder / FOLDER).iterdir()) == ["2", "4", "6"]
    assert not (folder / DAMAGED).exists()


def test_a_state_of_another_shape_is_no_damage(runs, tmp_path):
    """Nothing is moved away where the fault is in what was asked for."""
    folder = shutil.copytree(runs["placed"][0], tmp_path / "run")
    other = START | {"weights": jnp.zeros((3, 3))}
    with pytest.raises(JvidpruneError, match=r"none of the 3 checkpoints .* can be read"):
        loop.fit(folder, other, update, Numbers(), 8, settings={"a": 1}, log=1, keeping=Keeping(2, 3))
    assert sorted(path.name for path in (folder / FOLDER).iterdir()) == ["2", "4", "6"]


def test_a_damaged_best_checkpoint_gives_way_to_the_next(runs, tmp_path):
    folder, notes = shutil.copytree(runs["best"][0], tmp_path / "run"), []
    keeping = Keeping(2, 3, best="score")
    # The metric falls with the step: the first is the best.
    step, state = checkpoints.best(folder, keeping, START, placed=True, note=notes.append)
    assert (step, int(state["count"]), notes) == (2, 2, [])
    damage(folder / FOLDER / "2" / "state" / "manifest.ocdbt", "cut")
    step, state = checkpoints.best(folder, keeping, START, placed=True, note=notes.append)
    assert (step, int(state["count"])) == (4, 4)
    assert notes[0].startswith("the best checkpoint, of step 2, is damaged (")
    assert (folder / DAMAGED / "2").is_dir()


def test_damaged_files_beside_the_checkpoints(runs, tmp_path):
    whole, truth = runs["placed"]
    folder = shutil.copytree(whole, tmp_path / "run")
    with (folder / loop.CURVE).open("ab") as file:
        file.write(b'{"step": 7, "lo')
    same(train(folder)[0], truth)
    assert loop.read_curve(folder) == loop.read_curve(whole)
    (folder / "settings.json").write_text('{"a"')
    with pytest.raises(JvidpruneError, match=r"settings.json is damaged: remove it"):
        train(folder)
    (folder / "settings.json").unlink()
    same(train(folder)[0], truth)
    assert json.loads((folder / "settings.json").read_text()) == {"a": 1}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    wrong = ["/proc/jvidprune", tmp_path / "file", tmp_path / "file" / "below", "/dev/null/run", "a\0b"]
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o500)
        wrong.append(tmp_path / "shut" / "run")
    for folder in wrong:
        with pytest.raises(JvidpruneError, match=r"cannot make the folder .*[^.]\.$"):
            train(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_checkpoints_of_another_layout_are_refused_and_stay_where_they_are(kind, runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[kind][0], folder)
    before = sorted(path.name for path in (folder / FOLDER).iterdir())
    moments = {"first": START["moments"][0], "second": START["moments"][1]}
    placed = KINDS[kind]["placed"]
    said = r"\(step 6: its state is laid out otherwise, as other versions of jvidprune did\): remove .* from the start"
    with pytest.raises(JvidpruneError, match=said):
        checkpoints.newest(folder, START | {"moments": moments}, placed=placed, note=print)
    assert sorted(path.name for path in (folder / FOLDER).iterdir()) == before
