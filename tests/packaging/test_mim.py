from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_works_through_mim_from_an_unrelated_folder():
    script = Path(__file__).with_name('prove_mim.sh')
    run = subprocess.run(
        ['bash', str(script), sys.executable],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
