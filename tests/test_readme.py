"""The README's promises: snippets run as they stand, the table matches the code, there are two set-up commands."""

import re
from pathlib import Path

import pytest

from jvidprune.llm import coverage
from jvidprune.reducers import table

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python_snippets_run_as_they_stand(number, capsys):
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip()


def test_there_are_exactly_two_set_up_commands():
    commands = re.findall(r"^<!-- (run|test)-command -->\n```bash\n(.+)\n```", README, flags=re.M)
    assert [name for name, _ in commands] == ["run", "test"]
    assert all(command.startswith("python3 -m venv .venv && .venv/bin/pip install ") for _, command in commands)


def test_the_methods_table_is_the_generated_one():
    assert table.markdown() in README, "run: python -m jvidprune.reducers.table README.md"


def test_the_families_table_is_the_generated_one():
    assert coverage.markdown() in README, "run: python -m jvidprune.llm.coverage README.md"
