"""Runs the notebooks and keeps their outputs, so that they can be read where they lie.

python notebooks/run.py            all of them
python notebooks/run.py 01 04      some
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def run(path: Path) -> None:
    """Executes one notebook from the repository's root and writes it back; times and ids of the run are left out."""
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(HERE.parent)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where, record_timing=False).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def small(picture: str) -> str:
    """A PNG in base64 with 128 colours, a third of its size."""
    found, made = Image.open(io.BytesIO(base64.b64decode(picture))), io.BytesIO()
    found.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
    return base64.b64encode(made.getvalue()).decode()


if __name__ == "__main__":
    for one in sorted(HERE.glob("*.ipynb")):
        if not sys.argv[1:] or one.stem[:2] in sys.argv[1:]:
            run(one)
