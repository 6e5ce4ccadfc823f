"""Methods without public code are called reconstructions wherever they are listed."""

import dataclasses
import json

import pytest
from helpers.places import REPOSITORY
from helpers.reducer_checks import make_video

from jvidprune import JvidpruneError, reducers
from jvidprune.llm import coverage
from jvidprune.reducers import registry, table
from jvidprune.reducers.protocol import MethodInfo, title_of
from jvidprune.reducers.visionzip import VisionZip

TESTS = REPOSITORY / "tests"


@pytest.fixture
def rebuilt(monkeypatch):
    """VisionZip, as if nothing of it were public."""
    monkeypatch.setattr(VisionZip, "info", dataclasses.replace(VisionZip.info, provenance="reconstruction"))


def lines(text, name):
    """Those of a text that have a method in them."""
    return [line for line in text.splitlines() if f"`{name}`" in line]


def test_a_method_has_code_unless_it_says_otherwise():
    assert MethodInfo("x", "X", "-", "Does.", nested=False, merges=False, exact=True).provenance == "code"
    assert (registry.info("flashvid").label, title_of(reducers.get("flashvid"))) == ("FlashVID", "FlashVID")


def test_what_has_no_golden_files_is_a_control_or_a_reconstruction():
    rows = table.whole(TESTS).splitlines()[2:]
    listed = (*registry.names(), *registry.framed(), *registry.learned())
    kinds = dict(zip(listed, (row.split(" | ")[-1].rstrip(" |") for row in rows), strict=True))
    expected = {"code": ("golden files", "control"), "reconstruction": ("reconstruction, no golden files",)}
    for name, kind in kinds.items():
        assert kind in expected[registry.info(name).provenance], name


def test_titles_say_it_with_settings_in_wrappers_and_chains(rebuilt):
    assert title_of(VisionZip()) == "VisionZip (reconstruction)"
    typed = {
        "visionzip": "VisionZip (reconstruction)",
        "visionzip(layout='grid')": "VisionZip (reconstruction) (layout='grid')",
        "stop(base=visionzip, mu_s=0.1)": "SToP (base=visionzip (reconstruction), mu_s=0.1)",
        "stop(base=stop(base=visionzip))": "SToP (base=stop(base=visionzip) (reconstruction))",
        "flashvid + visionzip": "FlashVID → VisionZip (reconstruction)",
        "stop(base=flashvid)": "SToP (base=flashvid)",
        "tome(order='position')": "ToMe (order='position')",
    }
    assert {text: registry.title(text) for text in typed} == typed
    bare = dataclasses.replace(make_video(), evidence={})
    with pytest.raises(JvidpruneError, match=r"^VisionZip \(reconstruction\) needs the evidence"):
        reducers.reduce("visionzip", bare, 0.5)


def test_tables_and_sections_say_it(rebuilt):
    (short,) = lines(table.short(), "visionzip")
    assert "VisionZip (reconstruction) |" in short
    (row,) = lines(table.whole(TESTS), "visionzip")
    assert "| reconstruction, " in row
    section = table.sections().partition("### visionzip\n")[2].partition("\n### ")[0]
    assert "**VisionZip (reconstruction).**" in section
    assert "- **Provenance:** a reconstruction: no code of it is public" in section
    (row,) = lines(coverage.markdown(), "visionzip")
    assert "VisionZip (reconstruction) |" in row
    assert "reconstruction" not in "".join(lines(table.short() + table.whole(TESTS), "fastvid"))


def test_the_verb_says_it(rebuilt, run):
    code, out, _ = run("methods", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert (rows["visionzip"]["provenance"], rows["fastvid"]["provenance"]) == ("reconstruction", "code")
    out = " ".join(run("methods")[1].split())
    mine = out[out.index("VisionZip (reconstruction)") :]
    assert "no public code" in mine[: mine.index("divprune")]
    assert out.count("no public code") == sum(row["provenance"] == "reconstruction" for row in rows.values())
