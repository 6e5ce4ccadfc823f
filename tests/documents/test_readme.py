"""What README and docs promise: snippets run, command lines are understood, tables are generated, links lead on."""

import functools
import re
import shlex
import sys

import pytest
from helpers import pruners
from helpers.places import REPOSITORY

from jvidprune.cli import app
from jvidprune.llm import coverage
from jvidprune.procedural.clips import ClipSpec, render, write_mp4
from jvidprune.reducers import registry, table

PAGES = {
    str(path.relative_to(REPOSITORY)): path
    for path in (REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/**/*.md")))
}
TEXTS = {name: path.read_text(encoding="utf8") for name, path in PAGES.items()}
SNIPPETS = {
    f"{name}-{number}": code
    for name, text in TEXTS.items()
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
}
COMMANDS = [
    (name, re.sub(r"\s+#.*$", "", line))
    for name, text in TEXTS.items()
    for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("jvidprune ")
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the clip that snippets read."""
    folder = tmp_path_factory.mktemp("snippets")
    write_mp4(folder / "clip.mp4", render(ClipSpec(seed=7, frames=16)).frames, 8.0)
    return folder


@pytest.mark.parametrize("name", SNIPPETS)
def test_python_snippets_run_as_they_stand(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    page = name.rpartition("-")[0]
    # Those of a page build on each other, as a reader types them.
    space = {"__name__": "snippet"}
    for other, code in SNIPPETS.items():
        if other.rpartition("-")[0] == page and other != name and "def " in code and other < name:
            exec(compile(code, other, "exec"), space)
    exec(compile(SNIPPETS[name], name, "exec"), space)
    capsys.readouterr()


def test_snippets_print_what_they_are_about(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(compile(SNIPPETS["README.md-0"], "README", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[:60])
def test_documented_command_lines_are_understood(page, line, tmp_path, monkeypatch, capsys):
    begun = []

    def instead(verb):
        @functools.wraps(verb)
        def record(*args, **kwargs):
            begun.append(verb.__name__)

        return record

    monkeypatch.setattr(app, "VERBS", tuple(instead(verb) for verb in app.VERBS))
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", words)
    app.main()
    assert begun == [words[1]]
    (tmp_path / "my_reducer.py").write_text(SNIPPETS["docs/adding-a-method.md-0"])
    (tmp_path / "my_cost.py").write_text(SNIPPETS["docs/transport-costs.md-0"])
    for name in ("covipal/pruner", "routers/router"):
        (tmp_path / "runs" / name).parent.mkdir(parents=True)
        pruners.weights(16).write(tmp_path / "runs" / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--reducer", "--methods", "--compare")]
    for text in named:
        for method in re.split(r",(?![^(]*\))", text):
            registry.from_text(method)


def test_there_are_exactly_two_set_up_commands():
    commands = re.findall(r"^<!-- (run|test)-command -->\n```bash\n(.+)\n```", TEXTS["README.md"], flags=re.M)
    assert [name for name, _ in commands] == ["run", "test"]
    assert all(command.startswith("python3 -m venv .venv && .venv/bin/pip install ") for _, command in commands)


def test_the_readme_is_a_page():
    assert len(TEXTS["README.md"].splitlines()) < 170
    assert all(
        len(line) <= 121 for line in TEXTS["README.md"].splitlines() if not line.startswith(("|", "- Notebooks"))
    )


def test_the_methods_tables_and_sections_are_the_generated_ones():
    again = "run: python -m jvidprune.reducers.table README.md docs/methods.md"
    assert table.short() in TEXTS["README.md"], again
    assert table.whole(REPOSITORY / "tests") in TEXTS["docs/methods.md"], again
    assert table.sections() in TEXTS["docs/methods.md"], again


def test_the_families_table_is_the_generated_one():
    assert coverage.markdown() in TEXTS["docs/models.md"], "run: python -m jvidprune.llm.coverage docs/models.md"


@pytest.mark.parametrize("name", registry.names())
def test_every_quirk_names_an_option_or_says_that_there_is_none(name):
    reducer = registry.get(name)
    fields = set(type(reducer).__dataclass_fields__)
    for quirk in registry.info(name).quirks:
        brackets = quirk[quirk.index("(") : quirk.rindex(")") + 1]
        told = "(no option)" in brackets or "(the methods themselves" in brackets
        assert told or set(re.findall(r"\w+", brackets)) & fields, quirk


def test_links_between_files_lead_somewhere():
    for name, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target, _, anchor = link.partition("#")
            if target.startswith(("http:", "https:")):
                continue
            path = (PAGES[name].parent / target).resolve() if target else PAGES[name]
            assert path.exists(), (name, link)
            if anchor and path.suffix == ".md":
                heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf8"), flags=re.M)
                slugs = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
                assert anchor in slugs, (name, link)


def test_flashvid_is_three_clicks_from_the_readme():
    assert "(docs/methods.md#flashvid)" in TEXTS["README.md"]
    assert "(../jvidprune/reducers/flashvid.py)" in TEXTS["docs/methods.md"]
    assert "(../jvidprune/reducers/flashvid.py)" in TEXTS["docs/tour.md"]
