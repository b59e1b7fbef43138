"""The quick start notebook runs from the first cell to the last."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "quickstart.ipynb"


@pytest.mark.slow  # trains on the real base and serves, some minutes on two cores
@pytest.mark.timeout(1200)
def test_it_runs_from_the_csv_to_the_service_that_stops(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = ["".join(output.get("text", "") for output in cell.get("outputs", ())) for cell in notebook.cells]
    assert any(text.startswith("serving like@production at http://127.0.0.1") for text in printed)
    assert printed[-2] == "exit code 0\n"
    (scored,) = [text for text in printed if ", because of" in text]
    assert "stars" in scored and "Comet and Orbit" in scored
