"""Two processes, half of the images each, one result."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmrazor_brecq.activations import CachedBatches, Store
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.objectives import FisherLowRank


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def model(**reconstructor):
    return BRECQ(
        copy.deepcopy(network()),
        quantization=dict(weight=dict(bits=2), activation=dict(bits=4)),
        reconstructor=dict(
            dict(
                type='BlockReconstructor',
                iterations=40,
                batch_size=8,
                negligible=0.0,
            ),
            **reconstructor,
        ),
    )


def images():
    return torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(1))


#: Options of the reconstruction, by name of the run.
KINDS = dict(
    default={},
    broken=dict(objective=dict(type='MSE')),
    uneven=dict(objective=dict(type='FisherLowRank')),
    settled=dict(stopping=dict(type='WhenSettled', share=0.1, every=5)),
)


def reconstruct(rank, world, folder, kind):
    """Run one process, on every ``world``-th image from ``rank`` on."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            'gloo',
            init_method=f'file://{folder}/rendezvous',
            rank=rank,
            world_size=world,
        )
    local_images = images()[rank::world].clone()
    if kind == 'broken' and rank == 1:
        local_images[3] = torch.inf
    if kind == 'uneven':
        FisherLowRank.max_elements = 2**12  # gradients come in several pieces
        local_images = images()[:63][rank::world]
    batches = local_images.split(8)
    store = Store()
    brecq = model(**KINDS[kind])
    brecq.eval()
    teacher = brecq.prepare(batches[0][:1])
    rows = CachedBatches(batches, [len(x) for x in batches], store)
    counted = []
    brecq.architecture[2].register_forward_hook(
        lambda m, args, out: counted.append(len(out))
    )
    reports = [r.to_dict() for r in brecq.reconstruct(teacher, rows)]
    torch.save(
        dict(
            state=brecq.state_dict(),
            reports=reports,
            cached=store.peak_bytes,
            images=sum(counted),
        ),
        f'{folder}/{world}_{rank}.pth',
    )
    if world > 1:
        dist.destroy_process_group()


def run(world, folder, kind='default'):
    each = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), folder, kind],
            env=dict(os.environ, TORCH_COMPILE_DISABLE='1'),
        )
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in each] == [0] * world
    return [
        torch.load(f'{folder}/{world}_{rank}.pth', weights_only=True)
        for rank in range(world)
    ]


@pytest.mark.slow
def test_two_processes_give_the_same_model(tmp_path):
    (alone,) = run(1, tmp_path)
    pair = run(2, tmp_path)

    for key, value in pair[0]['state'].items():
        assert torch.equal(value, pair[1]['state'][key]), key
    x = torch.randn(256, 3, 9, 9, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        goal = network()(x)
        errors = []
        for found in alone, pair[0]:
            student = model()
            student.load_state_dict(found['state'])
            errors.append(float((student(x) - goal).norm() / goal.norm()))
    assert errors[1] < 1.15 * errors[0]
    for a, b in zip(*(found['reports'] for found in pair)):
        for key in 'before', 'after', 'accepted', 'note':
            assert a[key] == b[key]


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path):
    pair = run(2, tmp_path, 'settled')

    taken = [[r['iterations'] for r in found['reports']] for found in pair]
    assert taken[0] == taken[1]
    assert min(taken[0]) < 40
    for key, value in pair[0]['state'].items():
        assert torch.equal(value, pair[1]['state'][key]), key


@pytest.mark.slow
def test_each_process_caches_and_runs_half_of_the_images(tmp_path):
    (alone,) = run(1, tmp_path)
    for found in run(2, tmp_path):
        assert found['cached'] == alone['cached'] / 2
        assert found['images'] == pytest.approx(alone['images'] / 2, rel=0.1)


@pytest.mark.slow
def test_processes_of_uneven_shares_find_the_same_eigenvectors(tmp_path):
    """They gather the gradients of all processes, and freeze one model."""
    pair = run(2, tmp_path, 'uneven')

    assert any(report['accepted'] for report in pair[0]['reports'])
    for key, value in pair[0]['state'].items():
        assert torch.equal(value, pair[1]['state'][key]), key
    for a, b in zip(*(found['reports'] for found in pair)):
        assert (a['before'], a['after']) == (b['before'], b['after'])


@pytest.mark.slow
def test_a_failure_in_one_process_is_one_in_all(tmp_path):
    """No process waits forever for the others."""
    pair = run(2, tmp_path, 'broken')

    for found in pair:
        assert all('NaN or infinity' in r['note'] for r in found['reports'])
    for key, value in pair[0]['state'].items():
        other = pair[1]['state'][key]
        assert torch.equal(value.nan_to_num(), other.nan_to_num()), key


if __name__ == '__main__':
    reconstruct(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
