"""The whole quantization on some fifty backbones of mmcls.

Their weights are random.
"""

from __future__ import annotations

import collections
import copy
import importlib.util
from typing import NamedTuple, Optional

import pytest
import torch
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.functional import tensors
from mmrazor_brecq.graph import (
    BlockPartition,
    fold_batch_norm,
    record,
    relative_difference,
)
from mmrazor_brecq.layers import (
    MatrixProduct,
    activation_quantizers,
    is_layer,
    quant_layers,
)
from mmrazor_brecq.reconstruction import NearestRounding

pytestmark = pytest.mark.slow

TINY = dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=192)


class Case(NamedTuple):
    """Backbone and the results that are expected of it.

    Attributes:
        config (dict): Config of the backbone.
        size (int): Height and width of images.
        norms (tuple): Number of BatchNorms that fold, and of all.
        units (tuple): Number of blocks, and of layers that are in none.
        end (float): Largest error of the quantized network's output,
            relative to its spread. None where deep stacks of BatchNorms with
            random weights between them enlarge every difference.
        unit (float): Largest median of the errors of units.
        double (bool): Whether the network computes in double precision. The
            code of some has float32 in it.
        seed (int): Seed of the random weights. Some networks enlarge even
            the noise of double precision, by 1e8.
    """

    config: dict
    size: int = 64
    norms: Optional[tuple[int, int]] = None
    units: Optional[tuple[int, int]] = None
    end: Optional[float] = None
    unit: float = 0.12
    double: bool = True
    seed: int = 0


CASES = dict(
    alexnet=Case(dict(type='AlexNet'), 224, (0, 0), (0, 5), 0.2),
    beit=Case(
        dict(type='BEiT', arch=TINY, img_size=64, patch_size=16),
        units=(4, 1),
        end=0.1,
    ),
    conformer=Case(
        dict(type='Conformer', arch='tiny'), norms=(85, 85), units=(13, 2)
    ),
    convmixer=Case(
        dict(
            type='ConvMixer',
            arch=dict(embed_dims=64, depth=6, patch_size=7, kernel_size=5),
        ),
        size=70,
        norms=(0, 13),
        end=0.2,
    ),
    convnext=Case(dict(type='ConvNeXt', arch='tiny'), units=(18, 4), end=0.1),
    csp_darknet=Case(
        dict(type='CSPDarkNet', depth=53), norms=(67, 67), units=(23, 21)
    ),
    csp_resnet=Case(dict(type='CSPResNet', depth=50), norms=(55, 55)),
    csp_resnext=Case(dict(type='CSPResNeXt', depth=50), norms=(55, 55)),
    davit=Case(dict(type='DaViT', arch='t', pad_small_map=True), end=0.2),
    deit=Case(
        dict(type='DistilledVisionTransformer', arch='deit-tiny', img_size=64),
        units=(12, 1),
        end=0.1,
    ),
    deit3=Case(
        dict(type='DeiT3', arch=TINY, img_size=64), units=(4, 1), end=0.1
    ),
    densenet=Case(
        dict(type='DenseNet', arch='121'), 64, (59, 121), (58, 4), 0.4
    ),
    edgenext=Case(
        dict(type='EdgeNeXt', arch='xxsmall'), end=0.1, double=False
    ),
    efficientformer=Case(
        dict(type='EfficientFormer', arch='l1'), 224, (33, 33), end=0.1
    ),
    efficientnet=Case(
        dict(type='EfficientNet', arch='b0'), 64, (49, 49), (16, 2)
    ),
    efficientnet_v2=Case(
        dict(type='EfficientNetV2', arch='b0'), norms=(59, 59)
    ),
    hornet=Case(dict(type='HorNet', arch='tiny'), end=0.1),
    hrnet=Case(dict(type='HRNet', arch='w18'), 64, (305, 305), (108, 84)),
    inception_v3=Case(dict(type='InceptionV3'), 128, (94, 94), (11, 6)),
    lenet=Case(dict(type='LeNet5'), 32, (0, 0), (0, 3), 0.1),
    levit=Case(dict(type='LeViT', arch='128s', img_size=224), 224, seed=2),
    mlp_mixer=Case(
        dict(type='MlpMixer', arch='b', img_size=64, patch_size=16),
        units=(12, 1),
        end=0.1,
    ),
    mobilenet_v2=Case(dict(type='MobileNetV2'), 64, (52, 52), (17, 2)),
    mobilenet_v3=Case(
        dict(type='MobileNetV3', arch='small'), 64, (34, 34), (11, 2)
    ),
    mobileone=Case(dict(type='MobileOne', arch='s0')),
    mobilevit=Case(
        dict(type='MobileViT', arch='xx_small'), norms=(32, 32), end=0.5
    ),
    mvit=Case(dict(type='MViT', arch='tiny', img_size=64), end=0.2),
    poolformer=Case(dict(type='PoolFormer', arch='s12'), end=0.1),
    regnet=Case(
        dict(type='RegNet', arch='regnetx_400mf'), 64, (71, 71), (22, 1)
    ),
    repvgg=Case(dict(type='RepVGG', arch='A0'), 64, (44, 61), (22, 0), 0.4),
    res2net=Case(
        dict(type='Res2Net', depth=50), norms=(87, 87), units=(16, 3)
    ),
    resnest=Case(
        dict(type='ResNeSt', depth=50),
        norms=(71, 71),
        units=(16, 3),
        unit=0.25,
    ),
    resnet18=Case(dict(type='ResNet', depth=18), 64, (20, 20), (8, 1), 0.4),
    resnet50=Case(dict(type='ResNet', depth=50), 64, (53, 53), (16, 1)),
    resnet_cifar=Case(
        dict(type='ResNet_CIFAR', depth=18), 32, (20, 20), (8, 1), 0.4
    ),
    resnext=Case(dict(type='ResNeXt', depth=50), 64, (53, 53), (16, 1)),
    revvit=Case(
        dict(type='RevVisionTransformer', arch=TINY, img_size=64),
        units=(4, 1),
        end=0.1,
    ),
    se_resnet=Case(dict(type='SEResNet', depth=50), 64, (53, 53), (16, 1)),
    se_resnext=Case(dict(type='SEResNeXt', depth=50), 64, (53, 53), (16, 1)),
    shufflenet_v1=Case(dict(type='ShuffleNetV1'), 64, (49, 49), (16, 1)),
    shufflenet_v2=Case(dict(type='ShuffleNetV2'), 64, (56, 56), (16, 2)),
    swin=Case(
        dict(
            type='SwinTransformer',
            arch='tiny',
            img_size=64,
            pad_small_map=True,
        ),
        units=(12, 4),
        end=0.1,
    ),
    swin_v2=Case(
        dict(
            type='SwinTransformerV2',
            arch='tiny',
            img_size=64,
            window_size=4,
            pad_small_map=True,
        ),
        end=0.3,
    ),
    t2t_vit=Case(
        dict(
            type='T2T_ViT',
            img_size=64,
            embed_dims=64,
            t2t_cfg=dict(token_dims=32, use_performer=False),
            num_layers=4,
            layer_cfgs=dict(num_heads=2, feedforward_channels=128),
        ),
        end=0.3,
    ),
    tinyvit=Case(
        dict(
            type='TinyViT',
            arch='5m',
            img_size=(64, 64),
            window_size=[7, 7, 14, 7],
        ),
        norms=(27, 27),
        end=0.4,
    ),
    tnt=Case(dict(type='TNT', arch='s', img_size=64), end=0.1),
    twins_pcpvt=Case(dict(type='PCPVT', arch='small'), end=0.1),
    twins_svt=Case(dict(type='SVT', arch='small'), end=0.1),
    van=Case(dict(type='VAN', arch='tiny'), norms=(4, 30), end=0.1),
    vgg=Case(
        dict(type='VGG', depth=11, norm_cfg=dict(type='BN')),
        norms=(8, 8),
        units=(0, 8),
        end=0.4,
    ),
    vit=Case(
        dict(type='VisionTransformer', arch='deit-tiny', img_size=64),
        units=(12, 1),
        end=0.1,
    ),
    xcit=Case(
        dict(
            type='XCiT',
            patch_size=16,
            embed_dims=64,
            depth=4,
            num_heads=2,
            mlp_ratio=2.0,
            cls_attn_layers=1,
        ),
        norms=(4, 8),
        end=0.2,
        double=False,
    ),
)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: more of them wait for each other on busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def norms_of(network):
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]


def settle(network, images):
    """Set the statistics of norms from images, then change them randomly.

    With initial statistics the signal of a deep network vanishes.
    """
    norms = norms_of(network)
    for norm in norms:
        norm.momentum = 1.0
    network.train(bool(norms))
    with torch.no_grad():
        network(images)
    network.eval()
    for norm in norms:
        spread = norm.running_var.sqrt()
        norm.running_mean += 0.1 * spread * torch.randn_like(spread)
        for gain in norm.running_var, norm.weight.data:
            gain *= torch.empty_like(gain).uniform_(0.8, 1.25)
        norm.bias.data += 0.1 * torch.randn_like(norm.bias)


def relative_error(output, target):
    """Return the largest error of a tensor, relative to its spread."""
    return max(
        float((x - y).norm() / spread(y))
        for x, y in zip(tensors(output), tensors(target))
    )


def spread(x):
    """Return how much a tensor varies between images, or else inside."""
    images = (x - x.mean(0)).norm()
    return images if images > 0 else (x - x.mean()).norm()


def eight_bits():
    """Return a scheme of 8 bits with the simplest observer."""
    quantizer = dict(bits=8, observer=dict(type='MinMaxObserver'))
    return dict(weight=quantizer, activation=quantizer)


class Probe(NearestRounding):
    """Reconstructor that stores the error of each unit."""

    def __init__(self):
        super().__init__()
        self.errors = {}

    @torch.no_grad()
    def __call__(self, unit, data, generator):
        report = super().__call__(unit, data, generator)
        self.errors[unit.name] = max(
            relative_error(unit.module(*args, **kwargs), target)
            for (args, kwargs), target in zip(
                data.float_inputs.split(), data.targets.split()
            )
        )
        return report


def models_of_a_host():
    """The models of mmcls, or of mmpretrain, which has the same ones."""
    if importlib.util.find_spec('mmcls'):
        return pytest.importorskip('mmcls.models')
    return pytest.importorskip('mmpretrain.models')


@pytest.mark.parametrize('name', CASES)
def test_a_backbone_is_quantized_to_eight_bits(name):
    models = models_of_a_host()
    case, scheme = CASES[name], eight_bits()
    torch.manual_seed(case.seed)
    network = models.build_backbone(copy.deepcopy(case.config))
    channels = 1 if name == 'lenet' else 3
    images = torch.randn(6, channels, case.size, case.size)
    settle(network, images)
    with torch.no_grad():
        expected = network(images)

    # Fold, in double precision, where rounding errors are small.
    folded = copy.deepcopy(network)
    folded = folded.double() if case.double else folded
    original = copy.deepcopy(folded)
    x = images[:2].to(next(folded.parameters()).dtype)
    total = len(norms_of(folded))
    count = len(fold_batch_norm(folded, record(folded, x)))
    difference = relative_difference(original, folded, x)
    assert difference <= (1e-8 if case.double else 1e-5)
    if case.norms is not None:
        assert (count, total) == case.norms
    del folded, original

    # Prepare: every called layer is in one unit, and is quantized.
    model = BRECQ(network, scheme)
    teacher = model.prepare(images[:1])
    recording = record(teacher, images[:1])
    called = {c.name for c in recording.calls if is_layer(c.module)}
    layers = [layer for unit in model.units for layer in unit.layers]
    assert len(layers) == len(set(layers)) and set(layers) == called
    products = {
        c.name for c in recording.calls if isinstance(c.module, MatrixProduct)
    }
    assert set(quant_layers(model.architecture)) == called - products
    if case.units is not None:
        alone = sum(u.layers == (u.name,) for u in model.units)
        assert (len(model.units) - alone, alone) == case.units
    again = BlockPartition()(teacher, recording)
    assert [u.layers for u in again] == [u.layers for u in model.units]

    # Reconstruct: each batch passes the float network once, and the modules
    # between units of the quantized one once, too.
    passes, passes_between = collections.Counter(), collections.Counter()
    for module in teacher.modules():
        module.register_forward_hook(
            lambda module, *_: passes.update([module])
        )
    inside = {m for unit in model.units for m in unit.module.modules()}
    between = {
        name: module
        for name, module in model.architecture.named_modules()
        if module not in inside
    }
    for name, module in between.items():
        module.register_forward_hook(
            lambda *_, name=name: passes_between.update([name])
        )
    probe = Probe()
    batches = [images[:4], images[4:]]
    reports = list(model.reconstruct(teacher, batches, reconstructor=probe))
    assert len(reports) == len(model.units)
    assert passes == {
        module: len(uses) * len(batches)
        for module, uses in recording.by_module().items()
    }
    assert passes_between == {
        uses[0].name: len(uses) * len(batches)
        for uses in recording.by_module().values()
        if uses[0].name in between
    }

    # A network built from the config and the state gives the same output.
    config = copy.deepcopy(case.config)
    other = BRECQ(models.build_backbone(config), scheme)
    # SwinV2 removes tables from a state and then reports them as missing.
    loaded = other.load_state_dict(model.state_dict(), strict=False)
    assert loaded.unexpected_keys == []
    assert other.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        output, again = model(images), other(images)
    for x, y in zip(tensors(output), tensors(again)):
        assert x.isfinite().all() and torch.equal(x, y)

    # The outputs of units and of the network are close to float.
    assert all(layer.frozen for layer in quant_layers(model).values())
    assert all(q.active for q in activation_quantizers(model))
    errors = torch.tensor(list(probe.errors.values()))
    assert errors.median() < case.unit, probe.errors
    assert errors.max() < 0.5, probe.errors
    if case.end is not None:
        assert relative_error(output, expected) < case.end


def test_a_detector_is_quantized_to_eight_bits():
    """A detector returns lists of dicts, and calls the layers of its heads
    for each level of its pyramid.
    """
    torchvision = pytest.importorskip('torchvision')
    torch.manual_seed(0)
    network = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=64
    ).eval()
    for norm in network.modules():
        if isinstance(norm, torchvision.ops.FrozenBatchNorm2d):
            norm.weight.uniform_(0.3, 0.9)
            norm.running_var.uniform_(0.5, 1.5)
    images = torch.rand(6, 3, 64, 64)
    folded = copy.deepcopy(network)
    names = fold_batch_norm(folded, record(folded, images))
    assert len(names) == 53
    assert relative_difference(network.backbone, folded.backbone, images) < (
        1e-5
    )

    model = BRECQ(network, eight_bits())
    teacher = model.prepare(images[:1])
    names = [unit.name for unit in model.units]
    assert sum(name.startswith('backbone.body.layer') for name in names) == 16
    heads = [name for name in names if name.startswith('head.')]
    # The layers of a head, which all levels share, learn together.
    assert sorted(heads) == [
        'head.classification_head',
        'head.regression_head',
    ]
    calls = collections.Counter()
    for module in teacher.modules():
        module.register_forward_hook(lambda module, *_: calls.update([module]))
    probe = Probe()
    batches = [images[:4], images[4:]]
    list(model.reconstruct(teacher, batches, reconstructor=probe))

    # A head takes the list of all levels, its layers one after the other.
    for unit in model.units:
        if unit.name in heads:
            assert calls[teacher.get_submodule(unit.name)] == len(batches)
            for name in unit.layers:
                assert calls[teacher.get_submodule(name)] == 5 * len(batches)
    errors = torch.tensor(list(probe.errors.values()))
    assert errors.median() < 0.2 and errors.max() < 0.5, probe.errors
    with torch.no_grad():
        found, expected = model(images), teacher(images)
    assert len(found) == len(expected) == 6
    assert all(x.isfinite().all() for x in tensors(found))
