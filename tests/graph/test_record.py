from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from mmrazor_brecq.graph import record, run_float


class Glue(nn.Module):
    """Network with every way for a tensor to get to the next module."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.same = nn.Conv2d(4, 4, 1)
        self.view = nn.Conv2d(2, 4, 1)
        self.changed = nn.Conv2d(4, 4, 1)
        self.written = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(x)
        y = self.same(x) + self.view(x[:, 1:3]) + self.changed(x * 1)
        return y + self.written(x.relu_())


@pytest.fixture
def calls(batches):
    network = Glue().eval()
    return {call.name: call for call in record(network, batches[0]).calls}


def test_modules_are_recorded_in_the_order_of_their_calls(calls):
    assert list(calls) == ['', 'a', 'same', 'view', 'changed', 'written']


def test_the_same_tensor_has_the_same_value(calls):
    out = calls['a'].outputs[0]

    assert calls['same'].inputs == (out,)
    for other in 'view', 'changed', 'written':
        assert calls[other].inputs != (out,)


def test_a_view_shares_the_memory_of_its_base(calls):
    out = calls['a'].outputs[0]

    assert calls['view'].inputs[0].same_memory(out)
    assert calls['same'].inputs[0].same_memory(out)
    assert not calls['changed'].inputs[0].same_memory(out)


def test_a_tensor_has_another_value_after_a_write_in_place(calls):
    """The object is the same, its content is not."""
    out, late = calls['a'].outputs[0], calls['written'].inputs[0]

    assert late.tensor == out.tensor
    assert late != out and not late.same_memory(out)


def test_nested_inputs_and_outputs_are_flattened(toy, batches):
    calls = record(toy('nested'), batches[0]).calls
    fuse = [call for call in calls if call.name.startswith('fuse.')]
    fuse = [call for call in fuse if call.name.count('.') == 1]

    assert [len(call.inputs) for call in fuse] == [2, 2]
    assert [len(call.outputs) for call in fuse] == [2, 2]
    assert fuse[1].inputs == fuse[0].outputs[::-1]


def test_a_module_may_be_called_twice_or_never(toy, batches):
    shared = toy('shared')
    recording = record(shared, batches[0])
    assert len(recording.by_module()[shared.head[0].conv]) == 2
    assert len(recording.by_module()[shared.head[0]]) == 2

    uncalled = toy('uncalled')
    recording = record(uncalled, batches[0])
    assert uncalled.auxiliary not in recording.by_module()


def test_recording_leaves_no_hooks_and_no_changes(each_toy, batches):
    before = run_float(each_toy, batches[0])
    record(each_toy, batches[0])

    for module in each_toy.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert torch.equal(run_float(each_toy, batches[0]), before)


def test_hooks_are_removed_when_the_network_fails(toy):
    network = toy('residual')
    with pytest.raises(RuntimeError):
        record(network, torch.zeros(1, 5, 8, 8))

    for module in network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_model_of_openmmlab_runs_without_post_processing(batches):
    class Model(BaseModel):
        def forward(self, inputs, data_samples=None, mode='predict'):
            return inputs if mode == 'tensor' else mode

    assert run_float(Model(), batches[0]) is batches[0]


def test_a_recording_keeps_no_activation_in_memory(toy, batches):
    """A recording has identifiers of activations, not their content."""
    network, alive = toy('residual'), []
    hooks = [
        module.register_forward_hook(
            lambda m, args, out: alive.append(
                StorageWeakRef(out.untyped_storage())
            )
        )
        for module in network.modules()
    ]
    recording = record(network, batches[0])
    for hook in hooks:
        hook.remove()

    assert recording.calls and all(storage.expired() for storage in alive)


def test_tensors_that_reuse_freed_memory_have_other_identifiers(batches):
    """Freed memory goes to the next tensor of the same size."""

    class Fresh(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Identity() for _ in range(20))

        def forward(self, x):
            for layer in self.layers:
                layer(x + 1)
            return x

    calls = record(Fresh(), torch.zeros(1, 4096)).calls[1:]
    values = [call.inputs[0] for call in calls]

    assert len({value.tensor for value in values}) == 20
    assert len({value.storage for value in values}) == 20
