"""Checkpoints of all kinds load, or their errors say what is wrong."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import (
    fingerprint,
    load_float,
    load_quantized,
    read_checkpoint,
    save_quantized,
)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'model.pth')


class Code:
    """An object that can only be loaded by running code."""


def test_a_plain_state_dict_loads(path):
    trained, model = network(), BRECQ(network())
    torch.save(trained.state_dict(), path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)


@pytest.mark.parametrize('key', ['state_dict', 'model'])
def test_a_wrapped_state_dict_of_a_framework_loads(path, key):
    trained, model = network(), BRECQ(network())
    state = {f'module.{k}': v for k, v in trained.state_dict().items()}
    torch.save({key: OrderedDict(state), 'epoch': 3}, path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)


def test_a_missing_file_is_refused(path):
    with pytest.raises(FileNotFoundError, match='No checkpoint at'):
        read_checkpoint(path)


@pytest.mark.parametrize('left', [0, 10, 1000])
def test_a_truncated_file_is_refused(path, left):
    torch.save(network().state_dict(), path)
    with open(path, 'rb') as file:
        content = file.read()[:left]
    with open(path, 'wb') as file:
        file.write(content)
    with pytest.raises(ValueError, match='no whole checkpoint'):
        read_checkpoint(path)


@pytest.mark.parametrize('text', ['<html>not found</html>', 'epoch: 3'])
def test_a_file_that_is_no_checkpoint_is_refused(path, text):
    with open(path, 'w') as file:
        file.write(text)
    with pytest.raises(ValueError, match='no whole checkpoint'):
        read_checkpoint(path)


def test_a_file_without_a_state_dict_is_refused(path):
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='has no state_dict'):
        read_checkpoint(path)


def test_an_unsafe_file_loads_only_with_trust(path):
    torch.save(dict(state_dict=network().state_dict(), hook=Code()), path)
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        read_checkpoint(path)
    assert 'state_dict' in read_checkpoint(path, trust=True)


def test_a_checkpoint_of_another_network_is_refused_with_names(path):
    torch.save({f'other.{i}': torch.zeros(1) for i in range(5)}, path)
    with pytest.raises(ValueError) as info:
        load_float(BRECQ(network()), path)
    message = str(info.value)
    assert '0 of 9 tensors of Sequential match' in message
    assert '8 missing (0.weight, 0.bias, 1.weight, ...)' in message
    assert '5 unexpected (other.0, other.1, other.2, ...)' in message


def test_a_tensor_of_another_shape_is_refused(path):
    state = network().state_dict()
    state['2.weight'] = torch.zeros(7, 4, 1, 1)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r'2.weight \(7, 4, 1, 1\) for'):
        load_float(BRECQ(network()), path)


def test_unexpected_tensors_are_ignored(path):
    trained, model = network(), BRECQ(network())
    torch.save(dict(trained.state_dict(), ema=torch.zeros(2)), path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)


@pytest.fixture
def quantized(path):
    model = BRECQ(
        network(), reconstructor=dict(type='NearestRounding', batch_size=2)
    ).eval()
    images = torch.rand(4, 3, 6, 6)
    teacher = model.prepare(images[:1])
    list(model.reconstruct(teacher, [images]))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(a=1)), path)
    return model


def test_a_quantized_checkpoint_loads(quantized, path):
    fresh = BRECQ(network()).eval()
    assert load_quantized(fresh, path) == dict(a=1)
    images = torch.rand(2, 3, 6, 6)
    assert torch.equal(fresh(images), quantized(images))


def test_a_float_checkpoint_given_as_quantized_is_refused(path):
    torch.save(network().state_dict(), path)
    with pytest.raises(ValueError, match='ptq.py or mmrazor_brecq.quantize'):
        load_quantized(BRECQ(network()), path)


def test_a_quantized_checkpoint_given_as_float_is_refused(quantized, path):
    with pytest.raises(ValueError, match='tools/test.py'):
        load_float(BRECQ(network()), path)


@pytest.mark.parametrize(
    'other, words',
    [
        (
            lambda: nn.Sequential(*network(), nn.Conv2d(4, 2, 1)),
            ["the file lacks the layer '3' of the Sequential"],
        ),
        (
            lambda: network()[:2],
            ["the Sequential lacks the layer '2' of the file"],
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 5), *network()[1:]),
            ['architecture.0.weight is 4 x 3 x 3 x 3 in the file, and 4'],
        ),
        (
            lambda: nn.Sequential(nn.Identity(), network()),
            ["lacks 2 layers, '1.0' first", "lacks the layer '2' of the"],
        ),
    ],
)
def test_a_checkpoint_of_another_network_gives_one_error(
    quantized, path, other, words, warnings_log
):
    with pytest.raises(ValueError, match='does not belong to') as info:
        load_quantized(BRECQ(other()), path)
    for text in (*words, 'network that was quantized'):
        assert text in str(info.value)
    assert '\n' not in str(info.value) and warnings_log == []


def test_a_quantized_checkpoint_of_another_config_is_refused(quantized, path):
    other = BRECQ(
        network(),
        quantization=dict(weight=dict(bits=4), first_last_bits=None),
    )
    with pytest.raises(ValueError, match='config'):
        load_quantized(other, path)
    other = BRECQ(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))
    with pytest.raises(ValueError, match='does not belong to this config'):
        load_quantized(other, path)


@pytest.mark.parametrize(
    'wrap, prefix',
    [
        (lambda s: {f'_orig_mod.{k}': v for k, v in s.items()}, '_orig_mod'),
        (lambda s: {f'module._orig_mod.{k}': v for k, v in s.items()}, 'mod'),
        (lambda s: {f'model.{k}': v for k, v in s.items()}, 'model.'),
        (lambda s: {f'module.model.{k}': v for k, v in s.items()}, 'model.'),
        (
            lambda s: {
                **{f'backbone.{k}': v for k, v in s.items()},
                'head.fc.weight': torch.ones(2),
            },
            'backbone.',
        ),
    ],
)
def test_known_prefixes_are_removed(path, wrap, prefix, said_log):
    trained, model = network(), BRECQ(network())
    torch.save(dict(state_dict=wrap(trained.state_dict())), path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)
    assert any('names without' in line and prefix in line for line in said_log)


def test_a_prefix_that_the_file_lacks_is_added(path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = network()

    trained, model = network(), BRECQ(Wrapped())
    torch.save(trained.state_dict(), path)
    load_float(model, path)
    assert fingerprint(model.architecture.backbone) == fingerprint(trained)


def test_a_prefix_that_is_the_name_of_a_module_is_kept(path, said_log):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.model = network(), network()

    trained, model = Wrapped(), BRECQ(Wrapped())
    torch.save(trained.state_dict(), path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)
    assert not any('took' in line for line in said_log)


def test_no_prefix_is_removed_if_that_does_not_help(path):
    state = {f'model.{k}': v for k, v in network().state_dict().items()}
    del state['model.0.weight']
    torch.save(state, path)
    with pytest.raises(ValueError, match=r'8 unexpected \(model.0.bias'):
        load_float(BRECQ(network()), path)


@pytest.mark.parametrize(
    'plain, average',
    [
        ('state_dict', 'ema_state_dict'),
        ('state_dict', 'state_dict_ema'),
        ('model', 'model_ema'),
        ('model', 'ema_model'),
        ('model', 'ema'),
    ],
)
def test_the_log_says_which_weights_were_loaded(
    path, plain, average, said_log
):
    trained, other = network(), network()
    averages = {f'module.{k}': v for k, v in other.state_dict().items()}
    averages['steps'] = torch.tensor(3)
    torch.save({plain: trained.state_dict(), average: averages}, path)
    model = BRECQ(network())
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)
    (line,) = [line for line in said_log if 'took' in line]
    assert f'took {plain!r}' in line and f'{average!r} is there' in line


@pytest.mark.parametrize(
    'content',
    [
        lambda s: dict(ema_state_dict=s, epoch=3),
        lambda s: dict(model_ema=dict(module=s)),
        lambda s: dict(state_dict=dict(other=torch.ones(1)), model_ema=s),
    ],
)
def test_averages_are_loaded_if_nothing_else_fits(path, content):
    trained, model = network(), BRECQ(network())
    torch.save(content(trained.state_dict()), path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)


def test_a_whole_model_loads_only_with_trust(path):
    trained, model = network(), BRECQ(network())
    for content in trained, dict(model=trained, ema=None, epoch=3):
        torch.save(content, path)
        with pytest.raises(ValueError, match='--trust-checkpoint'):
            load_float(model, path)
        load_float(model, path, trust=True)
        assert fingerprint(model.architecture) == fingerprint(trained)


@pytest.mark.filterwarnings('ignore::FutureWarning')
def test_a_torchscript_archive_is_refused_with_a_cure(path):
    torch.jit.save(torch.jit.script(network()), path)
    with pytest.raises(ValueError, match='TorchScript archive.*state_dict'):
        load_float(BRECQ(network()), path)


class Versioned(nn.Sequential):
    """A network with an extra state."""

    def __init__(self, state):
        super().__init__(*network())
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_an_extra_state_is_loaded_and_may_be_missing(path):
    trained, model = Versioned(dict(version=3)), BRECQ(Versioned(None))
    torch.save(trained.state_dict(), path)
    load_float(model, path)
    assert model.architecture.state == dict(version=3)
    assert fingerprint(model.architecture) == fingerprint(trained)
    torch.save(network().state_dict(), path)
    load_float(model, path)
    assert model.architecture.state == dict(version=3)


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
@pytest.mark.parametrize(
    'state', [None, dict(version=3, mean=torch.ones(2)), b'x', (1, 'a')]
)
def test_an_extra_state_is_saved(state, ending, tmp_path):
    path = str(tmp_path / f'q.{ending}')
    images = torch.rand(4, 3, 6, 6)

    def build(state):
        return BRECQ(
            Versioned(state),
            reconstructor=dict(type='NearestRounding', batch_size=2),
        ).eval()

    model = build(state)
    teacher = model.prepare(images[:1])
    list(model.reconstruct(teacher, [images]))
    save_quantized(model, {}, path)
    fresh = build('another')
    load_quantized(fresh, path)
    assert str(fresh.architecture.state) == str(state)
    assert torch.equal(fresh(images), model(images))


def test_an_extra_state_that_no_file_can_contain_is_refused_early():
    model = BRECQ(Versioned(Code()))
    with pytest.raises(ValueError, match="'_extra_state'.*Code"):
        model.prepare(torch.rand(1, 3, 6, 6))
