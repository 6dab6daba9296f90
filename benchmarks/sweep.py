"""Quantize, save and load networks with random weights; print a table.

What the sweeps over libraries have in common; see `segmenters.py`. Every
unit learns for one iteration and is frozen, the model is saved and loaded
into a network built anew, and outputs have to be equal to the last bit.
"""

from __future__ import annotations

import argparse
import collections
import os.path as osp
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.functional import tensors
from mmrazor_brecq.graph import inputs_for, run_float

#: Units learn for one iteration.
SCHEDULE = dict(
    type='BlockReconstructor',
    iterations=1,
    batch_size=2,
    fit_images=2,
    objective=dict(type='FisherDiag', images=2),
)


def sweep(
    build: Callable[[], nn.Module], scope: str, size: int, **options: Any
) -> dict[str, Any]:
    """Quantize, save and load one network.

    Args:
        build (callable): Makes the network, with the same random weights
            each time.
        scope (str): Default scope of its library.
        size (int): Side of the images, in pixels.
        options (dict): Further arguments of ``mmrazor_brecq.quantize``.

    Returns:
        dict: ``account``, ``units``, ``seconds``, and whether outputs after
        loading are ``equal``.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, size, size, generator=generator)
    start = time.perf_counter()
    with DefaultScope.overwrite_default_scope(scope):
        network = build()
        model, report = mmrazor_brecq.quantize(
            network, images, reconstructor=SCHEDULE, **options
        )
        with tempfile.TemporaryDirectory() as folder:
            path = osp.join(folder, 'quantized.pth')
            mmrazor_brecq.save(model, path)
            again = mmrazor_brecq.load(build(), path)
        inputs = inputs_for(network, images[:2])
        found, expected = (
            _outputs(x.architecture, inputs) for x in (again, model)
        )
    return dict(
        account=report['account'],
        units=report['units'],
        seconds=time.perf_counter() - start,
        equal=len(found) == len(expected) > 0
        and all(map(torch.equal, found, expected)),
    )


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)  # Some networks draw numbers.
    return tensors(run_float(network, inputs))


def row(name: str, found: Mapping[str, Any]) -> str:
    """Return one row of the table.

    Args:
        name (str): Name of the network.
        found (dict): What :func:`sweep` returns.
    """
    account = found['account']
    reasons = collections.Counter(
        reason.split(' (')[0] for reason in account['left_float'].values()
    )
    notes = [f'{count} in float: {why}' for why, count in reasons.items()]
    if not found['equal']:
        notes.insert(0, 'other outputs after loading')
    return (
        f'| {name} | {account["quantized"]} | {len(found["units"])} '
        f'| {found["seconds"]:.0f} | {"; ".join(notes)} |'
    )


def main(
    about: str, names: list[str], measure: Callable[[str], dict[str, Any]]
) -> None:
    """Sweep over networks and print.

    Args:
        about (str): Text for ``--help``.
        names (list[str]): Names of all networks.
        measure (callable): Returns what :func:`sweep` does, by name.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument('--models', nargs='+', default=names)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    print('| Model | Layers | Units | Seconds | Notes |')
    print('| :-- | --: | --: | --: | :-- |')
    for name in args.models:
        try:
            print(row(name, measure(name)), flush=True)
        except Exception as error:  # It is the answer.
            print(f'| {name} | | | | {type(error).__name__}: {error} |')
