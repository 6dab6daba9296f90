"""Training of quantized networks: it learns, and nothing is lost."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mmrazor_brecq
from mmrazor_brecq.engine import launch
from mmrazor_brecq.engine.fine_tune_run import finetune
from mmrazor_brecq.engine.fine_tuning import FineTuning
from mmrazor_brecq.layers import quant_layers

from .conftest import FLOAT


@pytest.fixture
def data(generator):
    images = torch.randn(48, 3, 8, 8, generator=generator)
    return images, images.mean((2, 3)).argmax(1)


@pytest.fixture
def network(toy):
    return toy('residual')


@pytest.fixture
def model(network, data):
    return mmrazor_brecq.quantize(
        network,
        data[0],
        reconstructor=dict(type='NearestRounding'),
        bit_overrides={'*': 3},
    )[0]


def loader(*tensors):
    return DataLoader(TensorDataset(*tensors), 16)


def integers(model):
    layers = quant_layers(model.architecture)
    return {k: v.stored_weight.clone() for k, v in layers.items()}


def error(model, network, images):
    with torch.no_grad():
        return float((model(images) - network(images)).square().mean())


def test_integers_stay_if_nothing_is_learned(model):
    before = integers(model)
    tuning = FineTuning(copy.deepcopy(model))
    assert all(not x.frozen for x in quant_layers(tuning.quantized).values())
    tuning.close()
    assert all(
        torch.equal(x, before[k])
        for k, x in integers(tuning.quantized).items()
    )


def test_it_learns_from_labels(model, data):
    images, labels = data
    before = integers(model)
    found = mmrazor_brecq.finetune(
        model, loader(images, labels), F.cross_entropy, epochs=30, lr=0.05
    )
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(m(images), labels)) for m in (model, found)
        ]
    assert losses[1] < 0.8 * losses[0]
    # The caller's model is as it was.
    assert all(torch.equal(x, before[k]) for k, x in integers(model).items())
    assert all(x.dtype == torch.int8 for x in integers(found).values())


def test_it_learns_from_the_float_network_alone(model, network, data):
    images, _ = data
    found = mmrazor_brecq.finetune(
        model, loader(images), teacher=network, epochs=20, lr=0.02
    )
    assert error(found, network, images) < 0.8 * error(model, network, images)


def test_the_result_is_saved_and_loaded(model, network, data, tmp_path):
    images, labels = data
    found = mmrazor_brecq.finetune(
        model, loader(images, labels), F.cross_entropy
    )
    path = tmp_path / 'finetuned.pth'
    mmrazor_brecq.save(found, path)
    loaded = mmrazor_brecq.load(network, path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), found(images))


def test_a_diverging_training_keeps_the_best_state(model, data, caplog):
    images, labels = data
    found = mmrazor_brecq.finetune(
        model, loader(images, labels), lambda x, y: x.sum() / 0.0
    )
    before = integers(model)
    assert all(torch.equal(x, before[k]) for k, x in integers(found).items())


def test_something_to_learn_from_is_needed(model, network, data):
    images, _ = data
    with pytest.raises(ValueError, match='no labels'):
        mmrazor_brecq.finetune(model, loader(images))
    with pytest.raises(ValueError, match='teacher=None'):
        FineTuning(copy.deepcopy(model), labels=False)
    with pytest.raises(ValueError, match='quantized BRECQ'):
        mmrazor_brecq.finetune(network, loader(images))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return the folder of a short run."""
    from .conftest import quick_config

    folder = tmp_path_factory.mktemp('run')
    launch.ptq(quick_config(folder), FLOAT)
    return folder


def training(quick, **options):
    """Return a config that trains on the few images of the test."""
    cfg = quick('tuned', **options)
    cfg.train_dataloader = copy.deepcopy(cfg.test_dataloader)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
    cfg.optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3))
    return cfg


@pytest.mark.slow
def test_the_runner_draws_no_new_weights(quick, run):
    cfg = training(quick)
    cfg.optim_wrapper.optimizer.lr = 1e-9
    before = launch.test(quick('before'), str(run / 'quantized.pth'))
    path = finetune(cfg, str(run / 'quantized.pth'), teacher=FLOAT)
    after = launch.test(quick('after'), path)
    assert after['accuracy/top1'] == before['accuracy/top1']


def test_a_config_without_training_images_is_refused(quick, run):
    with pytest.raises(ValueError, match='train_dataloader'):
        finetune(quick(), str(run / 'quantized.pth'))


def test_a_float_checkpoint_is_refused(quick):
    with pytest.raises(ValueError, match='float checkpoint: quantize'):
        finetune(training(quick), FLOAT)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_config_only(quick, run):
    checkpoint = str(run / 'quantized.pth')
    finetune(training(quick), checkpoint)
    with pytest.raises(ValueError, match='another config'):
        finetune(training(quick, model__held_out=0.2), checkpoint, resume=True)
    longer = training(quick)
    longer.train_cfg.max_epochs = 2
    finetune(longer, checkpoint, resume=True)
    last = Path(longer.work_dir, 'last_checkpoint').read_text()
    assert last.endswith('epoch_2.pth')
