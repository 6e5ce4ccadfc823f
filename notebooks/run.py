"""Runs the notebooks and keeps their outputs, so that they can be read where they lie.

python notebooks/run.py            all of them
python notebooks/run.py 01 04      some
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def run(path: Path) -> None:
    """Executes one notebook from the repository's root and writes it back; times and ids of the run are left out."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(HERE.parent)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where, record_timing=False).execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    for one in sorted(HERE.glob("*.ipynb")):
        if not sys.argv[1:] or one.stem[:2] in sys.argv[1:]:
            run(one)
