"""The notebooks run from top to bottom on the embedded model, and are committed with what they show."""

import re

import nbformat
import pytest
from helpers.places import REPOSITORY
from nbclient import NotebookClient

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
README = (REPOSITORY / "README.md").read_text(encoding="utf8")


def outputs(notebook, kind):
    """Data of one MIME type that the cells show."""
    shown = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return [output["data"][kind] for output in shown if kind in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_a_notebook_runs_and_shows_something(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "run notebooks/run.py and commit what it writes"
    assert outputs(notebook, "image/png"), "the picture is committed"
    assert path.stat().st_size < 600_000
    assert notebook.cells[0].cell_type == "markdown"
    assert f"notebooks/{path.name}" in README
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(REPOSITORY)}}
    ).execute()
    assert outputs(notebook, "image/png"), "a notebook has a picture"
    texts = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    assert re.search(r"\d", "".join(texts)), "a notebook measures something"
    warned = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not warned


def test_there_are_the_notebooks_that_the_readme_lists():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, len(NOTEBOOKS) + 1)]
    assert set(re.findall(r"notebooks/(\w+)\.ipynb", README)) == {path.stem for path in NOTEBOOKS}
