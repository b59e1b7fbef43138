"""The notebook: what it says works from the first cell to the last, and it is kept without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_holds_no_outputs_and_no_place_of_a_machine(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 8 and not any(cell.outputs or cell.execution_count for cell in cells)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not any(place in text for place in ("/home/", "/tmp/", "/root/", "/work/"))


@pytest.mark.slow  # trains on the real base and serves, some minutes on two cores
@pytest.mark.timeout(1200)
def test_it_runs_from_the_csv_to_the_service_that_stops(notebook, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert any(text.startswith("serving like@production at http://127.0.0.1") for text in said)
    assert said[-2] == "exit code 0\n"
    (scored,) = [text for text in said if ", because of" in text]
    assert "stars" in scored and "Comet and Orbit" in scored
