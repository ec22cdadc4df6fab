"""The notebook runs from its first cell to its last, and shows what it says."""

import nbformat
from backends import BACKEND, once
from nbclient import NotebookClient
from processes import ROOT


@once
def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    for cell in notebook.cells:  # fewer epochs and seeds than a reader wants to see
        cell.source = cell.source.replace("EPOCHS, SEEDS = 15, 3", "EPOCHS, SEEDS = 2, 2")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": ROOT / "docs"}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    for part in (
        "'vgg16', 15 activations replaced, with φ for GAAF, outputs",
        "8 activations replaced",
        "GAAF_tanh  test accuracy 0.",
        "8 activations put back",
    ):
        assert part in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
