from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

import mmrazor_brecq
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.layers import quant_layers

ROOT = Path(__file__).parents[1]

BRIEF = dict(type='BlockReconstructor', iterations=2)


def test_it_says_how_far_it_is(toy, generator, capsys):
    images = torch.randn(64, 3, 8, 8, generator=generator)
    _, report = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=BRIEF
    )
    said = capsys.readouterr().err
    for unit in report['units']:
        assert f'{unit["name"]}: error' in said


def test_it_accounts_for_what_is_left_in_float(toy, generator, monkeypatch):
    said = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(
        logger, 'handle', lambda r: said.append(r.getMessage())
    )
    images = torch.randn(16, 3, 8, 8, generator=generator)
    why = dict(up='a transposed convolution, which is not supported')
    _, report = mmrazor_brecq.quantize(
        toy('transposed'), images, reconstructor=BRIEF
    )
    assert report['account']['left_float'] == why
    assert report['account']['quantized'] == report['account']['layers'] == 2
    summary = f'2 of 2 layers quantized; 1 left in float: up ({why["up"]})'
    assert report['account']['summary'] == summary
    assert said[-1] == summary


@pytest.mark.parametrize('count', [2, 3, 64, 65])
def test_as_many_images_as_there_are(count, toy, generator, warnings_log):
    """Fewer than a batch of 64 will do, with a word of warning."""
    images = torch.randn(count, 3, 8, 8, generator=generator)
    model, report = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=BRIEF
    )

    assert all(layer.frozen for layer in quant_layers(model).values())
    assert all(unit['after'] < math.inf for unit in report['units'])
    few = [line for line in warnings_log if line.startswith(f'{count} images')]
    assert len(few) == (count < 64)


@pytest.mark.parametrize('count', [0, 1])
def test_an_image_to_learn_from_and_one_to_validate_on(count, toy):
    images = torch.zeros(count, 3, 8, 8)
    with pytest.raises(
        ValueError, match=f'{count} images, expected 2 or more'
    ):
        mmrazor_brecq.quantize(toy('residual'), images)


@pytest.mark.parametrize('schedule', ['fast', 'default', 'best'])
def test_a_schedule_is_given_by_its_name(schedule, toy, monkeypatch):
    path = ROOT / f'configs/_base_/schedules/{schedule}.py'
    found = []

    def stop(self, network, *args, reconstructor, **kwargs):
        found.append(reconstructor)
        raise InterruptedError

    monkeypatch.setattr(BRECQ, '__init__', stop)
    with pytest.raises(InterruptedError):
        mmrazor_brecq.quantize(
            toy('residual'), torch.zeros(4, 3, 8, 8), reconstructor=schedule
        )
    assert found == [Config.fromfile(path).schedule.to_dict()]


@pytest.mark.parametrize(
    'given, words',
    [
        (dict(iterations=2), "dict(type='BlockReconstructor', iterations=2)"),
        (dict(rounding_lr=0.1), 'rounding_lr=0.1)'),
        (dict(reconstructor='fst'), "did you mean 'fast'"),
        (dict(reconstructor='slow'), 'best, default, fast'),
        (dict(weight_bit=3), "did you mean 'weight_bits'"),
    ],
)
def test_a_wrong_argument_gets_the_right_one(given, words, toy):
    with pytest.raises(ValueError) as info:
        mmrazor_brecq.quantize(
            toy('residual'), torch.zeros(4, 3, 8, 8), **given
        )
    assert words in str(info.value)


def test_a_single_image_is_no_batch(toy, images, tmp_path, warnings_log):
    network = toy('residual')
    with pytest.raises(ValueError, match='3 x 8 x 8.*N x C x H x W.*stack'):
        mmrazor_brecq.quantize(network, images[0])
    model, _ = mmrazor_brecq.quantize(
        network, images, reconstructor=dict(type='NearestRounding')
    )
    warnings_log.clear()
    with pytest.raises(ValueError, match='3 x 8 x 8.*N x C x H x W'):
        mmrazor_brecq.export_onnx(model, images[0], tmp_path / 'a.onnx')
    assert warnings_log == []


def test_inputs_of_three_dimensions_are_batches_where_networks_take_them():
    """Such as spectrograms, which the network gives their channel."""

    class Spectrograms(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 4, 3)
            self.head = torch.nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.conv(x[:, None]).mean((2, 3)))

    model, _ = mmrazor_brecq.quantize(
        Spectrograms().eval(),
        torch.randn(8, 8, 8),
        reconstructor=dict(type='NearestRounding'),
    )
    assert model(torch.randn(2, 8, 8)).shape == (2, 2)


def test_a_float_checkpoint_names_the_call_that_quantizes(toy, tmp_path):
    network = toy('residual')
    torch.save(network.state_dict(), tmp_path / 'float.pth')
    with pytest.raises(ValueError, match='mmrazor_brecq.quantize'):
        mmrazor_brecq.load(network, tmp_path / 'float.pth')


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_a_network_of_another_type_is_refused(dtype, toy):
    images = torch.zeros(4, 3, 8, 8, dtype=dtype)
    with pytest.raises(ValueError, match=f'{dtype}, expected torch.float32'):
        mmrazor_brecq.quantize(toy('residual').to(dtype), images)


def test_a_quantized_network_is_refused(toy, generator):
    images = torch.randn(4, 3, 8, 8, generator=generator)
    model, _ = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=dict(type='NearestRounding')
    )
    with pytest.raises(ValueError, match='quantized already'):
        mmrazor_brecq.quantize(model, images)


def test_the_default_schedule_is_that_of_the_configs(toy, images, monkeypatch):
    asked = []

    def read_part(*names):
        asked.append(names[:2])
        return BRIEF

    monkeypatch.setattr('mmrazor_brecq.api.read_part', read_part)
    _, report = mmrazor_brecq.quantize(toy('residual'), images)
    assert asked == [('schedule', 'default')]
    assert max(unit['iterations'] for unit in report['units']) <= 4


def test_memory_bounds_what_is_held(toy, generator, monkeypatch):
    images = torch.randn(12, 3, 8, 8, generator=generator)
    spilled, found = [], []
    run = BRECQ.reconstruct

    def reconstruct(self, teacher, rows, seed):
        yield from run(self, teacher, rows, seed)
        spilled.append(rows.store.spilled_bytes)

    monkeypatch.setattr(BRECQ, 'reconstruct', reconstruct)
    for memory in None, '4KB':
        model, _ = mmrazor_brecq.quantize(
            toy('residual'), images, reconstructor=BRIEF, memory=memory
        )
        found.append(model.state_dict())

    assert spilled[0] == 0 and spilled[1] > 0
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    with pytest.raises(ValueError, match="memory='much'"):
        mmrazor_brecq.quantize(toy('residual'), images, memory='much')


@pytest.fixture
def finished(toy, generator):
    """A quantized toy and images for it."""
    images = torch.randn(16, 3, 8, 8, generator=generator)
    model, _ = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=dict(type='NearestRounding')
    )
    return model, images


@pytest.mark.parametrize('use', ['save', 'export_onnx'])
def test_what_is_not_quantized_is_neither_saved_nor_exported(
    use, finished, toy, tmp_path
):
    model, images = finished
    float_one = BRECQ(toy('residual')).eval()
    placed = BRECQ(toy('residual')).eval()
    placed.prepare(images[:1])
    half = copy.deepcopy(model)
    half.architecture.head.thaw(toy('residual').head.weight)
    for wrong, words in (
        (toy('residual'), 'a Classifier, expected a quantized BRECQ'),
        (model.architecture, 'a Classifier, expected a quantized'),
        (float_one, 'BRECQ of a Classifier still has the float network'),
        (placed, "'stem.0' first, have float weights: not reconstructed"),
        (half, "1 of 7 layers, 'head' first, have float weights"),
    ):
        with pytest.raises(ValueError, match=words):
            if use == 'save':
                mmrazor_brecq.save(wrong, str(tmp_path / 'q.pth'))
            else:
                path = str(tmp_path / 'q.onnx')
                mmrazor_brecq.export_onnx(wrong, images, path)
    assert not list(tmp_path.iterdir())


def test_a_whole_model_can_be_pickled_and_copied(finished, tmp_path):
    model, images = finished
    expected = model(images)
    torch.save(model, tmp_path / 'whole.pth')
    code = (
        'import torch, sys; '
        f'model, images = torch.load({str(tmp_path / "both.pth")!r}, '
        'weights_only=False); '
        f'torch.save(model(images), {str(tmp_path / "out.pth")!r})'
    )
    for again in (
        torch.load(tmp_path / 'whole.pth', weights_only=False),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ):
        assert torch.equal(again(images), expected)
        mmrazor_brecq.save(again, str(tmp_path / 'again.pth'))
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
    # In a process that has not made such a layer yet.
    layer = model.architecture.stem[0]
    torch.save((layer, images), tmp_path / 'both.pth')
    subprocess.run([sys.executable, '-c', code], check=True)
    assert torch.equal(
        torch.load(tmp_path / 'out.pth', weights_only=True), layer(images)
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['residual', 'transformer', 'shared'])
def test_a_traced_model_says_the_same(name, toy, generator):
    images = torch.randn(16, 3, 8, 8, generator=generator)
    model, _ = mmrazor_brecq.quantize(
        toy(name), images, reconstructor=dict(type='NearestRounding')
    )
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', '.*is deprecated', FutureWarning)
        traced = torch.jit.trace(model, images[:2])
    assert torch.equal(traced(images), model(images))


@pytest.mark.parametrize('wrap', [torch.compile, torch.nn.DataParallel])
def test_a_wrapped_network_is_taken_out(wrap, finished, toy, tmp_path):
    expected, images = finished
    model, _ = mmrazor_brecq.quantize(
        wrap(toy('residual')),
        images,
        reconstructor=dict(type='NearestRounding'),
    )
    state = expected.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    path = str(tmp_path / 'q.pth')
    mmrazor_brecq.save(wrap(model), path)
    loaded = mmrazor_brecq.load(wrap(toy('residual')), path)
    assert torch.equal(loaded(images), expected(images))
    with pytest.raises(ValueError, match='quantized already'):
        mmrazor_brecq.quantize(wrap(model), images)
