"""Any torch network as a model of a config."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from mmcls.structures import ClsDataSample
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import load_float
from mmrazor_brecq.graph import record
from mmrazor_brecq.models import TorchModel
from mmrazor_brecq.registry import MODELS


def resnet(**kwargs):
    return dict(
        type='mmrazor_brecq.TorchModel',
        network=dict(
            type='torchvision.models.resnet18', num_classes=5, **kwargs
        ),
        data_preprocessor=dict(
            type='ImgDataPreprocessor', mean=[127.0], std=[60.0]
        ),
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmcls'):
        return MMENGINE_MODELS.build(resnet()).eval()


def batch(count=4):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    samples = [ClsDataSample().set_gt_label(i % 5) for i in range(count)]
    return dict(inputs=list(images), data_samples=samples)


def test_outputs_are_those_of_the_network(model):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model.network(x))


def test_metrics_of_mmcls_work(model):
    with torch.no_grad():
        samples = model.test_step(batch())
    with DefaultScope.overwrite_default_scope('mmcls'):
        evaluator = Evaluator(dict(type='Accuracy', topk=(1, 5)))
    evaluator.process(data_samples=samples)
    metrics = evaluator.evaluate(4)
    assert metrics['accuracy/top5'] == 100
    with torch.no_grad():
        inputs = model.data_preprocessor(batch(), False)['inputs']
        assert model(inputs).shape == (4, 5)


def test_the_predicted_class_has_the_largest_logit(model):
    data = batch()
    with torch.no_grad():
        samples = model.test_step(data)
        inputs = model.data_preprocessor(data, False)['inputs']
        expected = model(inputs).argmax(1)
    found = [int(sample.pred_label.label) for sample in samples]
    assert found == expected.tolist()


def test_the_loss_falls_in_training(model):
    data = model.data_preprocessor(batch(8), True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(12):
        loss = model(**data, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_units_are_those_of_the_bare_network(model):
    brecq = BRECQ(model)
    brecq.prepare(torch.randn(1, 3, 32, 32))
    names = [unit.name for unit in brecq.units]
    assert 'network.layer1.0' in names
    assert 'network.layer4.1' in names
    assert len(names) == 10


def test_units_directly_in_the_network_are_blocks():
    class Block(nn.Sequential):
        pass

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = Pair()
            self.b = Pair()

        def forward(self, x):
            return self.b(self.a(x)).mean((2, 3))

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 3, 3, padding=1)
            self.two = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return x + self.two(self.one(x).relu())

    brecq = BRECQ(TorchModel(Network()))
    brecq.prepare(torch.randn(1, 3, 8, 8))
    assert [u.name for u in brecq.units] == ['network.a', 'network.b']


def test_weights_of_the_bare_network_load(model):
    other = MODELS.build(resnet()).eval()
    x = torch.randn(1, 3, 32, 32)
    for state in (model.network.state_dict(), model.state_dict()):
        other.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(model(x), other(x))


def test_a_file_of_the_bare_network_loads(model, tmp_path):
    path = str(tmp_path / 'bare.pth')
    torch.save(model.network.state_dict(), path)
    brecq = BRECQ(resnet()).eval()
    load_float(brecq, path)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(brecq(x), model(x))


class Maker:
    @classmethod
    def make(cls, features):
        return nn.Linear(features, 2)


@pytest.mark.parametrize(
    'path', ['tests_maker.make', 'tests_maker.Maker.make']
)
def test_a_function_or_a_class_method_of_the_user_makes_the_network(
    path, monkeypatch
):
    module = types.ModuleType('tests_maker')
    module.Maker, module.make = Maker, Maker.make
    monkeypatch.setitem(sys.modules, 'tests_maker', module)
    made = TorchModel(dict(type=path, features=4))
    assert made(torch.zeros(1, 4)).shape == (1, 2)


@pytest.mark.parametrize(
    'network, error, message',
    [
        (dict(type='torchvision.models.resnet1'), ValueError, 'resnet1'),
        (dict(type='no_such_package.net'), ValueError, 'no_such_package'),
        (dict(type='collections.OrderedDict'), TypeError, 'OrderedDict'),
    ],
)
def test_other_things_than_networks_are_refused(network, error, message):
    with pytest.raises(error, match=message):
        TorchModel(network)


def test_recorded_calls_are_those_of_the_bare_network(model):
    x = torch.randn(1, 3, 32, 32)
    bare = record(model.network, x)
    assert len(record(model, x).calls) == len(bare.calls) + 1
