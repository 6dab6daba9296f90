"""Images that the toys of these tests are analyzed on."""

from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.activations import CachedBatches


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(48, 3, 8, 8, generator=generator).split(16)
    return CachedBatches(list(rows), [16, 16, 16])
