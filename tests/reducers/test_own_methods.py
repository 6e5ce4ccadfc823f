"""Reducers of the user's own in every verb: from a module, a file and an installed package; never from a stranger's."""

import csv
import importlib
import importlib.metadata
import json
import sys

import jax
import numpy as np
import pytest
from helpers.own_method import MINE
from helpers.reducer_checks import make_video, refused

import jvidprune
from jvidprune import own_code
from jvidprune.errors import JvidpruneError
from jvidprune.integrations.lmms_args import ModelArgs
from jvidprune.llm.video_llm import VideoLLM
from jvidprune.models.embedded import EMBEDDED
from jvidprune.reducers import own, registry
from jvidprune.reducers.exported import export_reducer, load_reducer
from jvidprune.reducers.serialise import FILE, SavedPruning, load_pruning, read_record, save_pruning
from jvidprune.reducers.writing import expression
from jvidprune.serve.compare import SideBySide
from jvidprune.video.limits import Limits

SOURCE = (
    MINE
    + """
made = Mine(0.5)

class NoPlan:
    needs = frozenset()
    budget = capacity = lambda self, layout, ratio: 1

class NoHash(Mine):
    __hash__ = None

class Asks(Mine):
    needs = frozenset({{"attenton_last"}})

class Breaks(Mine):
    def __init__(self):
        raise RuntimeError("not today")

a_number = 3
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module; what was imported from it is forgotten behind."""
    before, path = set(sys.modules), list(sys.path)
    helper = f"helper_of_{tmp_path.name}"
    (tmp_path / f"{helper}.py").write_text("sign = -1\n")
    (tmp_path / "mine_here.py").write_text(SOURCE.format(helper=helper))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_code, "_NAMED", {})
    monkeypatch.setattr(own_code, "_FILES", {})
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    importlib.invalidate_caches()


def test_a_class_is_found_in_a_module_and_in_a_file(folder):
    by_name, by_file = registry.from_text("mine_here:Mine(share=0.5)"), registry.from_text("./mine_here.py:Mine")
    assert by_name.share == 0.5
    assert jvidprune.reduce(by_name, make_video(), 0.5).count == make_video().layout().total // 4
    assert type(by_file).__module__ == "mine_here", "a run has the same identity whichever way it is written"
    assert registry.from_text("mine_here:made") == by_name
    assert registry.title("./mine_here.py:Mine(share=0.5) + flashvid") == "Mine (share=0.5) → FlashVID"
    assert registry.info("mine_here:Mine").summary == "Keeps the tokens with the largest norms."
    stop = registry.from_text("stop(base=mine_here:Mine(share=0.5), mu_s=0.1)")
    assert stop.base == by_name
    assert expression(stop) == "stop(base=mine_here:Mine(share=0.5), mu_s=0.1)"
    assert registry.from_text(expression(stop)) == stop


def test_a_file_that_was_edited_is_read_again(folder):
    first = registry.from_text("./mine_here.py:Mine")
    assert registry.from_text("./mine_here.py:Mine") == first
    (folder / "mine_here.py").write_text((folder / "mine_here.py").read_text().replace("= 1.0", "= 0.5"))
    assert registry.from_text("./mine_here.py:Mine").share == 0.5, "in the same second, and as long as before"


def test_a_file_named_as_a_module_of_python_takes_no_ones_place(folder):
    import json as known

    (folder / "json.py").write_text((folder / "mine_here.py").read_text())
    assert registry.from_text("./json.py:Mine(share=0.5)").share == 0.5
    assert sys.modules["json"] is known
    assert importlib.import_module("json") is known


WRONG = {
    "no_module_here:Mine": "there is no module no_module_here",
    "./no_file_here.py:Mine": "cannot read ./no_file_here.py",
    "mine_here:Mein": "unknown class 'Mein' of mine_here; known: Mine, .* Did you mean 'Mine'",
    "mine_here:NoPlan": r"NoPlan is no reducer: of needs, budget\(layout, ratio\), .* it lacks plan\.",
    "mine_here:a_number": "a_number is no reducer: .* it lacks needs, budget, capacity, plan",
    "mine_here:NoHash": "mine_here:NoHash has no hash",
    "mine_here:Asks": "unknown evidence 'attenton_last' in needs of mine_here:Asks; .* Did you mean 'attention_last'",
    "mine_here:Breaks": "mine_here:Breaks cannot be made with : not today",
    "mine_here:Mine(shrae=1)": "unknown hyper-parameter of mine_here:Mine 'shrae'; known: share. Did you mean 'share'",
    "mine_here:made(share=1)": "is an object and takes no settings",
    "./broken_here.py:Mine": "./broken_here.py cannot be imported: ZeroDivisionError: division by zero",
    "broken_here:Mine": "the module broken_here cannot be imported: ZeroDivisionError",
    "lost_here:Mine": "the module lost_here cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'",
    "flashvid:fast": "settings are written",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_what_is_no_reducer_is_refused_in_a_sentence(text, message, folder):
    (folder / "broken_here.py").write_text("1 / 0\n")
    (folder / "lost_here.py").write_text("import nowhere_at_all\n")
    with pytest.raises(JvidpruneError, match=message) as caught:
        registry.from_text(text)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
class _NoPlan:
    needs = frozenset()

    def budget(self, layout, ratio):
        return 1


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (jvidprune.reducers.DivPrune, r"DivPrune is a class: make one of it, as in DivPrune\(\)"),
        (_NoPlan(), "_NoPlan is no reducer: .* it lacks capacity, plan"),
        (3, "int is no reducer"),
    ],
)
def test_objects_that_are_no_reducers_are_refused_in_a_sentence(thing, words):
    video = make_video(frames=2)
    refused(lambda: jvidprune.reduce(thing, video, 0.5), words)
    refused(lambda: jvidprune.sweep(thing, video, [0.5]), words)
    refused(lambda: jvidprune.reduce_batch(thing, jax.tree.map(lambda x: x[None], video), 0.5), words)


@pytest.mark.slow
def test_a_sweep_has_its_row(folder, monkeypatch, run):
    text = "./mine_here.py:Mine(share=0.5)"
    words = ("--methods", f"{text},random", "--ratios", "0.25", "--clips", "2", "--max-new-tokens", "1", "--out", "run")
    code, _, err = run("sweep", *words, "--json")
    assert code == 0, err
    rows = list(csv.DictReader((folder / "run" / "table.csv").open()))
    assert {row["method"] for row in rows} >= {text, "random"}
    assert "Mine (share=0.5)" in (folder / "run" / "report.html").read_text()
    assert "Mine (share=0.5)" in (folder / "run" / "retention.svg").read_text()


def test_the_other_verbs_take_it(folder, monkeypatch, run):
    text = "./mine_here.py:Mine(share=0.5)"
    code, out, err = run("ask", "--reducer", text, "--ratio", "0.5", "--max-new-tokens", 1, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["kept"] == record["visual"] // 4
    code, out, err = run("reduce", "--compare", f"none,{text}", "--out", "a.html", "--json")
    assert code == 0, err
    assert json.loads(out)["methods"][1]["method"] == "Mine (share=0.5)"
    for verb in ("flops", "plan"):
        code, _, err = run(verb, "--reducer", text, "--json")
        assert code == 0, err
    assert ModelArgs.read({"reducer": text, "ratio": 0.5}).reducer == text


def test_saved_settings_run_code_only_where_that_is_allowed(folder, monkeypatch, run):
    code, _, err = run("export", EMBEDDED, "out", "--reducer", "mine_here:Mine(share=0.5)")
    assert code == 0, err
    saved = json.loads((folder / "out" / FILE).read_text())["reducer"]
    assert saved == {"module": "mine_here", "class": "Mine", "settings": {"share": 0.5}}
    named = load_pruning("out")
    assert named is not None, "who named the class in this process knows it"
    assert named.reducer.share == 0.5
    # As in a process of its own.
    monkeypatch.setattr(own_code, "_NAMED", {})
    del sys.modules["mine_here"]
    (folder / "mine_here.py").write_text("raise SystemExit('it ran')\n" + (folder / "mine_here.py").read_text())
    for load in (load_pruning, VideoLLM.load):
        with pytest.raises(JvidpruneError, match=r"names Mine of mine_here, whose code would be run.*allow_code=True"):
            load("out")
    code, _, err = run("ask", "--model", "out", "--ratio", "0.5")
    assert (code, "--allow-code" in err) == (2, True)
    assert "mine_here" not in sys.modules
    (folder / "mine_here.py").write_text((folder / "mine_here.py").read_text().replace("raise SystemExit", "str"))
    llm = VideoLLM.load("out", allow_code=True)
    assert llm.pruning is not None
    assert llm.pruning.reducer == registry.from_text("mine_here:Mine(share=0.5)")
    monkeypatch.setattr(own_code, "_NAMED", {})
    words = ("ask", "--model", "out", "--ratio", "0.5", "--max-new-tokens", 1, "--allow-code", "--json")
    code, _, err = run(*words)
    assert code == 0, err


@pytest.mark.parametrize(
    "reducer",
    [
        {"module": "mine_here", "class": "Mine"},
        {"module": "./mine_here.py", "class": "Mine"},
        {"module": "subprocess", "class": "Popen", "settings": {"args": ["true"]}},
        {"method": "stop", "settings": {"base": "mine_here:Mine"}},
        {"method": "stop", "settings": {"base": "./mine_here.py:Mine(share=0.5)"}},
        {"method": "sequential", "settings": {"second": "stop(base='./mine_here.py:Mine')"}},
        {"method": "stop", "settings": {"base": {"module": "mine_here", "class": "Mine"}}},
    ],
)
def test_no_way_through_a_file_runs_code(reducer, folder):
    (folder / "mine_here.py").write_text("raise SystemExit('it ran')\n")
    (folder / FILE).write_text(json.dumps({"format": 1, "ratio": 0.5, "reducer": reducer}))
    with pytest.raises(JvidpruneError, match="whose code would be run"):
        load_pruning(folder)
    assert "mine_here" not in sys.modules


@pytest.mark.parametrize(
    ("reducer", "message"),
    [
        ({"method": "mine_here:Mine"}, "saved as module and class"),
        ({"module": "mine_here"}, "must be|unknown key|has no"),
        ({"class": "Mine"}, "has no module"),
        ({"module": "", "class": "Mine"}, "cannot be imported"),
        ({"module": 3, "class": "Mine"}, "module of reducer must be a name"),
        ({"module": "subprocess", "class": "Popen", "settings": {"args": ["true"]}}, "Popen is no reducer"),
        ({"module": "mine_here", "class": "Mine", "settings": {"more": 1}}, "unknown key in settings of Mine 'more'"),
        ({"module": "mine_here", "class": "made"}, "is no dataclass|no dataclass"),
    ],
)
def test_a_file_with_wrong_code_is_refused_even_where_code_is_allowed(reducer, message, folder):
    with pytest.raises(JvidpruneError, match=message):
        read_record({"format": 1, "ratio": 0.5, "reducer": reducer}, allow_code=True)


def test_what_is_saved_is_read_again(folder):
    for text in ("mine_here:Mine(share=0.5)", "stop(base=mine_here:Mine(share=0.5))", "./mine_here.py:Mine"):
        saved = SavedPruning(registry.from_text(text), 0.25)
        save_pruning(folder, saved)
        assert load_pruning(folder, allow_code=True) == saved


def test_an_exported_program_asks_too(folder, monkeypatch):
    video, made = make_video(frames=5), registry.from_text("mine_here:Mine")
    path = export_reducer(folder / "mine.bin", made, video, 0.5)
    monkeypatch.setattr(own_code, "_NAMED", {})
    with pytest.raises(JvidpruneError, match="whose code would be run"):
        load_reducer(path)
    served = load_reducer(path, allow_code=True)(video, 0.25)
    np.testing.assert_array_equal(served.index[served.valid], _kept(made, video, 0.25))


def _kept(reducer, video, ratio):
    reduced = jvidprune.reduce(reducer, video, ratio)
    return np.asarray(reduced.index)[np.asarray(reduced.valid)]


def test_visitors_of_the_page_import_nothing(folder):
    llm = VideoLLM.load(EMBEDDED)
    page = SideBySide(llm, source=None, limits=Limits(), own=["./mine_here.py:Mine(share=0.5)"])
    assert page.methods()["./mine_here.py:Mine(share=0.5)"] == "Mine (share=0.5)"
    (folder / "theirs_here.py").write_text("raise SystemExit('it ran')\n")
    (folder / "a.mp4").write_bytes(b"")
    for text in ("./theirs_here.py:Mine", "theirs_here:Mine", "stop(base='theirs_here:Mine')"):
        with pytest.raises(JvidpruneError, match="whose code would be run"):
            page.compare(folder / "a.mp4", "What?", [text], 0.5)
    assert "theirs_here" not in sys.modules


def test_methods_of_installed_packages_have_names(folder, monkeypatch, run):
    info = folder / "site" / "mine_dist-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-dist\nVersion: 1.0\n")
    points = ("mine-own = mine_here:Mine", "flashvid = mine_here:Mine", "gone = not_there_at_all:Mine")
    (info / "entry_points.txt").write_text("[jvidprune.reducers]\n" + "\n".join(points) + "\n")
    monkeypatch.syspath_prepend(folder / "site")
    monkeypatch.syspath_prepend(folder)
    own.installed.cache_clear()
    try:
        made = registry.from_text("mine-own(share=0.5)")
        assert made == registry.from_text("mine_here:Mine(share=0.5)")
        assert type(registry.get("flashvid")).__module__ == "jvidprune.reducers.flashvid", "nobody takes a name away"
        assert registry.plugins() == ("mine_own", "gone")
        with pytest.raises(JvidpruneError, match="gone of an installed package cannot be imported: ModuleNotFound"):
            registry.from_text("gone")
        code, out, _ = run("methods", "--quiet")
        assert (code, "mine_own" in out.split(), "gone" in out.split()) == (0, True, False)
        assert expression(made) == "mine_own(share=0.5)"
        # Installed by the user, and named in a closed list: a file may choose it.
        saved = SavedPruning(made, 0.5)
        assert saved.record()["reducer"] == {"method": "mine_own", "settings": {"share": 0.5}}
        monkeypatch.setattr(own_code, "_NAMED", {})
        assert read_record(saved.record()) == saved
    finally:
        own.installed.cache_clear()
