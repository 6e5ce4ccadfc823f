"""The procedural benchmark: what it says about its clips is what their pixels show, and no text gives answers away."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest
from helpers.bench_watcher import Watcher

from jvidprune import cli
from jvidprune.cli import bench
from jvidprune.errors import JvidpruneError
from jvidprune.evals.items import LETTERS, Item, Question, chance
from jvidprune.procedural.baselines import TextOnly, baselines, table
from jvidprune.procedural.benchmark import SPLITS, Procedural, vocabulary
from jvidprune.procedural.categories import CATEGORIES, FOCUS, TEXTS
from jvidprune.procedural.export import export
from jvidprune.procedural.templates import split, template_of
from jvidprune.procedural.world import COLOUR_IDS, COLOURS, DIRECTION_IDS, SHAPE_IDS
from jvidprune.video.decode import read_frames

PLAIN = {"clutter": 0, "texture": 0.0, "noise": 0.0, "camera": 0.0, "posts": 0, "crowding": 0.0}


@pytest.fixture(scope="module")
def train() -> Procedural:
    return Procedural("train", clips=100_000)


class Kept:
    """Items of a task, made once."""

    def __init__(self, task: Procedural):
        self.name, self.categories, self.chance, self.fingerprint = task.name, task.categories, chance, task.fingerprint
        self._items = [task[i] for i in range(len(task))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Item:
        return self._items[index]


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept(Procedural("train", clips=1600))


@pytest.fixture(scope="module")
def asked(kept) -> list[Question]:
    return [question for i in range(len(kept)) for question in kept[i].questions]


def test_equal_settings_give_equal_items(train):
    # More clips do not change those that were there, nor does the order of drawing.
    again = Procedural("train", clips=7)
    train.sample(3)
    a, b = train.sample(6), again.sample(6)
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.questions == b.questions == train[6].questions
    np.testing.assert_array_equal(train[6].load().frames, a.frames)


def test_no_two_splits_share_a_seed_or_a_clip():
    tasks = [Procedural(name, clips=1 << 40) for name in SPLITS]
    ends = sorted((task.seed(0), task.seed((1 << 40) - 1)) for task in tasks)
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ends))
    first = [task.sample(0) for task in tasks]
    assert not any(np.array_equal(first[0].frames, other.frames) for other in first[1:])
    with pytest.raises(IndexError):
        tasks[0].seed(1 << 40)


def test_answers_follow_from_pixels_alone():
    task = Procedural("validation", clips=100_000, **PLAIN)
    wrong, seen = [], collections.Counter()
    for i in range(120):
        drawn = task.sample(i)
        watcher = Watcher(drawn.frames)
        for question in drawn.questions:
            seen[question.category, question.kind] += 1
            if watcher.answer(question.text, question.options) != question.content:
                wrong.append((i, question))
    assert not wrong
    assert {category for category, _ in seen} == set(CATEGORIES)
    assert min(sum(seen[category, kind] for kind in ("choice", "short", "yes_no")) for category in CATEGORIES) >= 12


def test_every_template_is_asked_and_recognised(asked):
    found = collections.Counter(template_of(question) for question in asked)
    assert set(found) == set(TEXTS)
    by_category = collections.defaultdict(set)
    for question in asked:
        by_category[question.category].add(question.kind)
    assert by_category.pop("hallucination") == {"yes_no"}
    assert all(kinds >= {"choice", "short"} for kinds in by_category.values())
    assert set(FOCUS) == set(CATEGORIES)


def test_a_clip_is_made_for_its_category(train):
    assert [train[i].questions[0].category for i in range(20)] == [*CATEGORIES, *CATEGORIES]
    two = Procedural("train", clips=10, categories=("motion", "hallucination"))
    assert {question.category for i in range(10) for question in two[i].questions} == {"motion", "hallucination"}


def test_within_a_template_no_answer_is_likelier_than_another(asked):
    # Templates that name objects have more answers than sightings: their letters are tested instead.
    groups = collections.defaultdict(list)
    for question in asked:
        groups[template_of(question), question.kind].append(question)
        if question.kind == "choice":
            groups["letters of", len(question.options)].append(dataclasses.replace(question, kind="short"))
    tested = 0
    for (name, kind), questions in groups.items():
        answers = collections.Counter(
            question.content if kind == "choice" else question.answer for question in questions
        )
        pool = {
            option
            for question in questions
            for option in (LETTERS[:kind] if name == "letters of" else question.options)
        }
        if len(questions) >= 12 * len(pool) and len(pool) > 1:
            expected = len(questions) / len(pool)
            spread = sum((answers[option] - expected) ** 2 / expected for option in pool)
            freedom = len(pool) - 1
            # Six standard deviations above the mean of the chi-square distribution.
            assert spread < freedom + 6 * np.sqrt(2 * freedom), (name, kind, answers)
            tested += 1
    assert tested > 15


def test_text_alone_stays_at_chance(kept):
    rows = baselines(kept, Procedural("test", clips=800))
    assert [row.category for row in rows] == [*CATEGORIES, "all"]
    for row in rows:
        error = np.sqrt(row.chance * (1 - row.chance) / row.questions)
        assert row.text_only < row.chance + 0.01 + 3 * error, row
    assert rows[-1].text_only < rows[-1].chance + 0.03
    assert table(rows).count("\n") == len(rows) + 1


def test_the_text_only_baseline_finds_a_shortcut():
    def ask(i: int) -> Question:
        options = ("red", "blue") if i % 2 else ("blue", "red")
        return Question(str(i), f"what color is thing {i % 3}?", "x", "choice", options, LETTERS[options.index("red")])

    guess = TextOnly.fit([ask(i) for i in range(60)], lambda question: question.category, least=5)
    assert all(guess.answer(ask(i)) == ask(i).answer for i in range(60, 80))


def test_prompts_and_answers_use_the_vocabulary_alone(asked):
    known = set(vocabulary())
    used = set()
    for question in asked:
        used |= {*split(question.prompt()), *split(question.answer)}
        assert len(split(question.text)) <= 15
        assert 0 < chance(question) <= 0.5
    assert used <= known
    # What is left are seconds of longer clips.
    assert all(word.isdigit() for word in known - used)


def test_labels_are_what_the_cells_show():
    """Mean colours of cells, with the nearest hue of the palette, against labels made from the scene."""
    task = Procedural("test", clips=60, **PLAIN)
    palette = np.array(list(COLOURS.values()), np.float64)
    palette = (palette - palette.mean(1, keepdims=True)) / np.linalg.norm(
        palette - palette.mean(1, keepdims=True), axis=1
    )[:, None]
    agree = []
    for i in range(12):
        drawn = task.sample(i)
        assert (drawn.labels.shape, drawn.labels.dtype) == ((8, 12, 12, 3), np.int8)
        colour, shape, direction = np.moveaxis(drawn.labels, -1, 0)
        assert ((np.stack([shape, direction]) > 0) == (colour > 0)).all()
        cells = drawn.frames.reshape(8, 12, 7, 12, 7, 3).mean((2, 4))
        hue = ((cells - cells.mean(-1, keepdims=True)) @ palette.T).argmax(-1) + 1
        agree.append((hue == colour)[colour > 0].mean())
        things = {(COLOUR_IDS[t.colour], SHAPE_IDS[t.shape], DIRECTION_IDS[t.direction]) for t in drawn.scene.things}
        things |= {
            (COLOUR_IDS[t.after], SHAPE_IDS[t.shape], DIRECTION_IDS[t.direction]) for t in drawn.scene.things if t.after
        }
        assert set(map(tuple, drawn.labels[colour > 0].tolist())) == things
    assert np.mean(agree) > 0.97


def test_labels_on_another_grid():
    drawn = Procedural("test", clips=1, grid=(6, 4)).sample(0)
    assert drawn.labels.shape == (8, 6, 4, 3)
    assert drawn.labels.any()


def test_knobs_change_the_clips():
    def clips(**settings) -> list:
        task = Procedural("train", clips=30, difficulty=0.0, **settings)
        return [task.sample(i) for i in range(1, 30, 3)]

    def grain(drawn) -> float:
        return float(np.mean([np.abs(np.diff(d.frames.astype(int), axis=2)).mean() for d in drawn]))

    plain = clips()
    assert grain(clips(noise=12.0)) > grain(plain) + 5
    assert grain(clips(texture=1.0)) > grain(plain) + 0.3
    assert grain(clips(clutter=9)) > grain(plain) + 0.3
    assert sum(len(d.scene.cuts) for d in plain) == 0 < sum(len(d.scene.cuts) for d in clips(cuts=1))
    assert (
        sum(np.abs(d.scene.camera).sum() for d in plain)
        == 0
        < sum(np.abs(d.scene.camera).sum() for d in clips(camera=8.0))
    )
    assert sum(len(d.scene.posts) for d in plain) == 0 < sum(len(d.scene.posts) for d in clips(posts=2))
    many = max(len(d.scene.mains) for d in clips(objects=5) if d.scene.focus != "counting")
    assert many == 5 > max(len(d.scene.mains) for d in plain if d.scene.focus != "counting") == 2


def test_a_needle_is_in_one_frame_of_a_long_clip():
    task = Procedural("test", clips=40, frames=32, categories=("needle", "localisation"))
    for i in range(0, 8, 2):
        drawn = task.sample(i)
        needle = drawn.scene.only("needle")
        assert drawn.frames.shape == (32, 84, 84, 3)
        shown = (drawn.labels[..., 0] == COLOUR_IDS[needle.colour]).any((1, 2))
        assert np.flatnonzero(shown).tolist() == [needle.start]
    # Seconds are for short clips; long ones are asked for quarters.
    assert all("quarter" in task[i].questions[0].text for i in range(1, 40, 2))


def test_export_writes_what_the_task_says(tmp_path):
    task = Procedural("test", clips=2, **PLAIN)
    notes = json.loads(export(task, tmp_path / "new", scale=2).read_text("utf-8"))
    assert notes["task"] == task.fingerprint()
    assert [row["id"] for row in notes["questions"]] == [q.id for i in range(2) for q in task[i].questions]
    row, question = notes["questions"][0], task[0].questions[0]
    assert (row["question"], row["answer"], tuple(row["options"])) == (question.text, question.answer, question.options)
    clip = read_frames(tmp_path / "new" / row["video"], fps=1.0)
    assert clip.frames.shape == (8, 168, 168, 3)
    assert np.abs(clip.frames[:, ::2, ::2].astype(int) - task[0].load().frames).mean() < 8


def test_the_verb_exports_and_measures(tmp_path, monkeypatch, capsys):
    def run(*words: str):
        monkeypatch.setattr("sys.argv", ["jvidprune", "bench", *words, "--json"])
        cli.main()
        return json.loads(capsys.readouterr().out)

    record = run("export", str(tmp_path / "files"), "--clips", "1", "--split", "validation")
    assert (record["clips"], record["questions"]) == (1, 3)
    assert sorted(path.name for path in (tmp_path / "files" / "videos").iterdir()) == ["validation-0.mp4"]
    monkeypatch.setattr(bench, "_FITTED", 100)
    rows = run("baselines", "--clips", "100")
    assert {row["category"]: row["chance"] for row in rows}["hallucination"] == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "dev"},
        {"frames": 4},
        {"difficulty": 2.0},
        {"categories": ("smell",)},
        {"objects": 9},
        {"camera": 40.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(JvidpruneError):
        Procedural(**wrong)
