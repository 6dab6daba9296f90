"""The notebooks run, and hold the figures that they make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip('nbformat')

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'examples/notebooks'

each_notebook = pytest.mark.parametrize(
    'path', sorted(FOLDER.glob('*.ipynb')), ids=lambda path: path.stem
)


def outputs(notebook, kind):
    """What its cells put out that is of a MIME type."""
    return [
        output['data'][kind]
        for cell in notebook.cells
        for output in cell.get('outputs', [])
        if kind in output.get('data', {})
    ]


@each_notebook
def test_what_is_stored_is_whole_and_small(path):
    text = path.read_text(encoding='utf-8')
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    # Run from the first cell to the last, in one go.
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    assert len(outputs(notebook, 'image/png')) >= 2
    assert len(text) < 300_000
    assert '/tmp/' not in text and str(ROOT) not in text


@pytest.mark.slow
@each_notebook
def test_runs_and_draws_its_figures(path, monkeypatch):
    nbclient = pytest.importorskip('nbclient')

    monkeypatch.setenv(
        'PYTHONPATH', f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    )
    notebook = nbformat.read(path, 4)
    stored = len(outputs(notebook, 'image/png'))
    nbclient.NotebookClient(
        notebook,
        timeout=600,
        resources=dict(metadata=dict(path=str(FOLDER))),
    ).execute()
    assert len(outputs(notebook, 'image/png')) == stored
