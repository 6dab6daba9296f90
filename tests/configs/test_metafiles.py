"""Metafiles and tables of READMEs list the configs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from modelindex.load_model_index import load

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    path.parent for path in (ROOT / 'configs/brecq').rglob('metafile.yml')
)

each_folder = pytest.mark.parametrize(
    'folder', FOLDERS, ids=lambda folder: folder.name
)


def config_names(folder):
    """Return the names of configs with bits in them."""
    return {
        path.name
        for path in folder.glob('*.py')
        if re.search(r'_w\d+a\d+_', path.name)
    }


def test_the_index_has_every_config():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert not index.check_errors
    configs = {model.config for model in index.models}
    assert configs == {
        str((folder / name).relative_to(ROOT))
        for folder in FOLDERS
        for name in config_names(folder)
    }
    assert len(index.models) == len(configs)
    for model in index.models:
        assert model.full_model.paper['URL'].endswith('/2102.05426')


@each_folder
def test_models_are_named_after_their_configs(folder):
    collection = load(str(folder / 'metafile.yml')).collections[0]
    assert (ROOT / collection.readme).is_file()
    for model in load(str(folder / 'metafile.yml')).models:
        assert model.name == Path(model.config).stem
        assert model.in_collection == collection.name
        weight, activation = re.search(r'_w(\d+)a(\d+)_', model.name).groups()
        assert model.metadata.data['Weight Bits'] == int(weight)
        assert model.metadata.data['Activation Bits'] == int(activation)


@each_folder
def test_metafiles_have_the_number_of_parameters(folder):
    counts = {}
    for model in load(str(folder / 'metafile.yml')).models:
        name = re.sub(r'_w\d+a\d+_', '_', model.name)
        counts.setdefault(name, []).append(model)
    for models in counts.values():
        config = Config.fromfile(ROOT / models[0].config)
        with DefaultScope.overwrite_default_scope('mmcls'):
            network = MODELS.build(config.model.architecture)
        count = sum(p.numel() for p in network.parameters())
        assert {model.metadata.parameters for model in models} == {count}


@each_folder
def test_the_table_lists_every_config(folder):
    text = (folder / 'README.md').read_text()
    rows = re.findall(r'\((\./brecq_\S+\.py)\) \|', text)
    assert sorted(Path(row).name for row in rows) == sorted(
        config_names(folder)
    )


@pytest.mark.parametrize(
    'path',
    sorted(
        path
        for folder in ('configs', 'demo', 'examples')
        for path in (ROOT / folder).rglob('*.md')
    ),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_of_readmes_exist(path):
    links = re.findall(r'\]\((?!http)([^)#]+)', path.read_text())
    for link in links:
        assert (path.parent / link).exists(), link
