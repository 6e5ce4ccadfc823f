"""A model folder says for which setting of the generated benchmark it was trained, and everything asks that one."""

import dataclasses
import json
import shutil

import pytest

from jvidprune import reducers
from jvidprune.cli.bench import BenchChoice
from jvidprune.cli.console import Console
from jvidprune.cli.costs import CostsChoice, embedded_clips
from jvidprune.cli.export import ExportChoice, write
from jvidprune.cli.sweep import SweepChoice
from jvidprune.errors import JvidpruneError
from jvidprune.evals.identity import model_identity, plain
from jvidprune.evals.laboratory import procedural_clips
from jvidprune.evals.plan import RATIOS
from jvidprune.evals.probe import probe
from jvidprune.evals.probe.run import CATEGORIES as PROBED
from jvidprune.evals.subset import Subset, answerable
from jvidprune.evals.tasks import DEFAULT_SWEEPS, answerable_part, benchmark_of, open_task
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.procedural.benchmark import Procedural, detailed, in_setting
from jvidprune.procedural.categories import ALL_CATEGORIES, CATEGORIES
from jvidprune.reducers.serialise import (
    FILE,
    FolderSettings,
    SavedPruning,
    load_declared,
    load_reading,
    load_settings,
    save_pruning,
    with_reading,
)
from jvidprune.serve.examples import SCALE, write_examples
from jvidprune.training.clips import clips_to_learn, frames_of, open_clips
from jvidprune.training.transport_parts import publish
from jvidprune.video.decode import read_frames

DECLARED = FolderSettings(benchmark="detailed", categories=("attribute", "small", "letter"))
MEASURED = """given,category,kind,questions,accuracy,chance
all tokens,attribute,short,100,0.9,0.2
all tokens,order,short,100,0.9,0.2
all tokens,small,short,100,0.9,0.2
all tokens,letter,choice,100,0.26,0.25
"""


@pytest.fixture(scope="module")
def folder(model, home):
    """A model with random weights that was made for detailed clips."""
    made = shutil.copytree(model, home / "detailed")
    (made / FILE).write_text(FolderSettings(benchmark="detailed").text())
    return made


@pytest.fixture(scope="module")
def llm(folder):
    return VideoLLM.load(folder)


@pytest.fixture(scope="module")
def undeclared(model, home):
    """A model with random weights, of which is known what it answers, but not what it was made for."""
    made = shutil.copytree(model, home / "undeclared")
    (made / "accuracy.csv").write_text("\n".join(MEASURED.splitlines()[:3]) + "\n")
    return VideoLLM.load(made)


@pytest.fixture(scope="module")
def embedded():
    return VideoLLM.load(EMBEDDED)


def test_a_declaration_is_read_as_it_was_written_and_stays_beside_everything_else(folder, home, tmp_path):
    source = shutil.copytree(folder, tmp_path / "source")
    (source / FILE).write_text(DECLARED.text())
    known = {"format": 1, "benchmark": "detailed", "categories": ["attribute", "small", "letter"]}
    assert json.loads(DECLARED.text()) == known
    assert load_settings(source) == load_declared(source) == DECLARED
    llm = VideoLLM.load(source)
    assert (llm.settings.benchmark, llm.settings.categories) == (DECLARED.benchmark, DECLARED.categories)
    assert llm.settings.declared_positions is llm.pruning is None
    # A transport that was learned, another convention, pruning settings, an export of all of them.
    publish(tmp_path / "learned", llm, llm.reducer("aot"), 0.25)  # pyright: ignore[reportArgumentType]
    assert load_declared(tmp_path / "learned") == DECLARED
    (source / FILE).write_text(with_reading(source, "transformers"))
    assert load_declared(source) == DECLARED._replace(convention="transformers")
    pruning = SavedPruning(reducers.get("random", "llava_onevision"), 0.25, "llava_onevision")
    save_pruning(source, pruning)
    write(str(source), tmp_path / "copy", ExportChoice(), console=Console(quiet=True))
    for place in (source, tmp_path / "copy"):
        found = load_settings(place)
        assert found.pruning == dataclasses.replace(pruning, convention="transformers")
        assert (found.benchmark, found.categories) == (DECLARED.benchmark, DECLARED.categories)
        assert load_reading(place).benchmark == "detailed"
    write(str(source), tmp_path / "other", ExportChoice("uniform"), console=Console(quiet=True))
    assert load_declared(tmp_path / "other") == DECLARED


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"benchmark": "hard"}, "benchmark must be default or detailed, got 'hard'"),
        ({"benchmark": None}, "benchmark must be default or detailed, got None"),
        ({"benchmark": ["detailed"]}, "benchmark must be default or detailed, got"),
        ({"categories": ["small"]}, "categories of the default benchmark must be some of attribute, "),
        ({"benchmark": "detailed", "categories": ["small", "smell"]}, r"in this order, got \['small', 'smell'\]"),
        ({"benchmark": "detailed", "categories": ["small", "attribute"]}, "in this order"),
        ({"benchmark": "detailed", "categories": ["small", "small"]}, "in this order"),
        ({"benchmark": "detailed", "categories": []}, r"in this order, got \[\]"),
        ({"benchmark": "detailed", "categories": "small"}, "in this order, got 'small'"),
        ({"benchmark": "detailed", "categories": None}, "in this order, got None"),
        ({"benchmark": "detailed", "ratio": 0.1}, "no reducer"),
        ({"benchmarks": "detailed"}, "unknown key in the file 'benchmarks'"),
    ],
)
def test_a_declaration_is_read_strictly(tmp_path, content, says):
    (tmp_path / FILE).write_text(json.dumps({"format": 1} | content))
    for read in (load_settings, load_reading):
        with pytest.raises(JvidpruneError, match=says) as error:
            read(tmp_path)
        assert str(tmp_path / FILE) in str(error.value)
    if "got" in says:
        with pytest.raises(JvidpruneError, match=r"categories of the|benchmark must be"):
            FolderSettings(benchmark="hard", categories=("smell",)).text()  # pyright: ignore[reportArgumentType]


def test_a_model_that_declares_nothing_is_asked_what_it_always_was(undeclared):
    """Every fingerprint is that of clips that are named in full."""
    settings = undeclared.settings
    assert (settings.benchmark, settings.categories) == ("default", None)
    pairs = answerable(undeclared.loaded.folder / "accuracy.csv")
    asked = tuple(dict.fromkeys(category for category, _ in pairs))
    size = {"frames": 8, "side": 56}

    def part(split, clips):
        return Subset(Procedural(split, clips=20 * clips, categories=asked, **size), pairs, clips).fingerprint()

    assert open_task("procedural", None, undeclared).fingerprint() == part("test", 50)
    assert open_task("procedural", None, undeclared, clips=3, frames=9).fingerprint() == part("test", 3) | {"frames": 9}
    whole = Procedural("test", clips=50, **size).fingerprint()
    assert open_task("procedural", None, undeclared, questions="all").fingerprint() == whole
    assert answerable_part(undeclared, "validation", 2).fingerprint() == part("validation", 2)
    learned, held = open_clips(undeclared, "procedural", None, frames=8, held_frames=9, questions=2, held=3)
    assert learned.fingerprint() == Procedural("train", clips=1 << 30, questions=2, **size).fingerprint()
    assert held.fingerprint() == Procedural("validation", clips=3, frames=9, side=56, questions=2).fingerprint()
    assert (
        clips_to_learn(undeclared, "procedural", None, frames=8, clips=4).fingerprint()
        == Procedural("train", clips=4, **size).fingerprint()
    )
    assert frames_of(undeclared, "procedural", None) == 8
    assert BenchChoice(clips=3, difficulty=0.2).task() == Procedural("test", 3, difficulty=0.2)
    assert SweepChoice().ratios_for(undeclared) == RATIOS == (0.25, 0.2, 0.15, 0.1, 0.05)
    # What is asked is no part of the model: hashes of runs are those of folders that knew nothing of it.
    assert not {"benchmark", "categories"} & set(plain(settings))
    declared = dataclasses.replace(settings, benchmark="detailed", categories=("rare",))
    assert model_identity(dataclasses.replace(undeclared, settings=declared)) == model_identity(undeclared)


def test_the_embedded_model_is_asked_what_its_folder_declares(embedded):
    declared, side = load_declared(EMBEDDED), embedded.loaded.config.vision.image_size
    setting = declared.benchmark or "default"
    clips, ratios = DEFAULT_SWEEPS[setting]
    good = declared.categories or ALL_CATEGORIES
    pairs = [pair for pair in answerable(EMBEDDED / "accuracy.csv") if pair[0] in good]
    asked = tuple(dict.fromkeys(category for category, _ in pairs))
    task = open_task("procedural", None, embedded)
    whole = in_setting(setting, "test", 20 * clips, side=side, categories=asked)
    assert task.fingerprint() == Subset(whole, pairs, clips).fingerprint()
    assert SweepChoice().ratios_for(embedded) == ratios
    # Its files say the same of what it reads.
    reads = json.loads((EMBEDDED / "video_preprocessor_config.json").read_text())
    assert task[0].load().frames.shape == (reads["num_frames"], side, side, 3)
    assert frames_of(embedded, "procedural", None) == embedded.settings.wish(None, None).frames == reads["num_frames"]


def test_a_model_of_detailed_clips_is_asked_these(folder, llm, tmp_path):
    clips, ratios = DEFAULT_SWEEPS["detailed"]
    assert open_task("procedural", None, llm).fingerprint() == detailed("test", clips, side=56).fingerprint()
    assert SweepChoice().ratios_for(llm) == ratios
    assert SweepChoice(ratios="0.5").ratios_for(llm) == (0.5,)
    assert SweepChoice(task="nextqa").ratios_for(llm) == RATIOS
    learned, held = open_clips(llm, "procedural", None, frames=16, held_frames=9, questions=3, held=2, clips=4)
    assert learned.fingerprint() == detailed("train", 4, side=56).fingerprint()
    assert held.fingerprint() == detailed("validation", 2, side=56, frames=9).fingerprint()
    assert frames_of(llm, "procedural", None) == 16
    (clip,) = embedded_clips(llm, CostsChoice(clips=1))
    assert clip.load().frames.shape == (16, 56, 56, 3)
    with pytest.raises(JvidpruneError, match=r"no .*accuracy\.csv: nobody knows"):
        answerable_part(llm, "test", 1)
    example = write_examples(tmp_path, llm, embedded=False, count=1)[0]
    assert read_frames(example.path, fps=1.0).frames.shape == (16, 112 * SCALE, 112 * SCALE, 3)
    task = detailed("test", 200)
    assert task[int(example.path.stem.rpartition("-")[2])].questions[0].text in example.prompt


def test_categories_that_a_folder_names_are_asked_by_default(folder, tmp_path):
    (source := shutil.copytree(folder, tmp_path / "source")).joinpath(FILE).write_text(DECLARED.text())
    llm = VideoLLM.load(source)
    asked = detailed("test", 5, side=56, categories=DECLARED.categories)
    assert open_task("procedural", None, llm, clips=5).fingerprint() == asked.fingerprint()
    whole = open_task("procedural", None, llm, clips=5, questions="all")
    assert whole.categories == ALL_CATEGORIES != CATEGORIES
    # Of those that were measured, what the folder names and the model answers above chance.
    (source / "accuracy.csv").write_text(MEASURED)
    part = open_task("procedural", None, llm, clips=5)
    assert part.pairs == (("attribute", "short"), ("small", "short"))
    assert {question.category for i in range(5) for question in part[i].questions} == {"attribute", "small"}
    assert procedural_clips(part)[0].load().frames.shape == (16, 56, 56, 3)
    assert {path.path.name.partition("-")[0] for path in write_examples(tmp_path, llm, embedded=False)} == {
        "attribute",
        "small",
    }
    (source / "accuracy.csv").write_text("\n".join(MEASURED.splitlines()[::2]) + "\n")
    with pytest.raises(JvidpruneError, match="no question above chance in attribute, small, letter; ask --questions"):
        open_task("procedural", None, llm, clips=5)


def test_the_verbs_ask_the_setting_of_the_model(run, folder, llm, tmp_path):
    code, _, _ = run("bench", "export", tmp_path / "clips", "--clips", 1, "--model", folder, "--json")
    notes = json.loads((tmp_path / "clips" / "annotations.json").read_text())
    assert (code, notes["task"]) == (0, detailed("test", 1).fingerprint())
    assert BenchChoice(setting="detailed", frames=9).task() == detailed("test", 200, frames=9)
    code, _, err = run("bench", "baselines", "--model", folder, "--setting", "default")
    assert code
    assert "leave out --setting or --model" in err
    table = probe(llm, ["random"], [0.25], controls=(), clips=1, fitted=1)
    tokens = llm.encode(benchmark_of(llm, "test", 1, categories=PROBED)[0].load()).tokens.layout()
    assert (tokens.frames, table.visual) == (16, tokens.total)


@pytest.mark.slow
def test_a_sweep_asks_the_setting_of_the_model(run, folder, tmp_path):
    words = ("--methods", "random", "--controls", "none", "--one-frame", "no", "--max-new-tokens", 1, "--clips", 1)
    code, _, err = run("sweep", "--model", folder, *words, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    asked = detailed("test", 1, side=56)[0].questions
    assert {sample["question"] for sample in samples} == {question.id for question in asked}
    ratios = {sample["ratio"] for sample in samples if sample["method"] == "random"}
    assert ratios == set(DEFAULT_SWEEPS["detailed"].ratios)
