from __future__ import annotations

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmrazor_brecq.datasets import UnlabeledImages
from mmrazor_brecq.registry import DATASETS


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(['b.png', 'a.JPG', 'deep/er/c.jpeg']):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), i, np.uint8)).save(path)
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def test_all_images_below_a_folder(folder):
    images = UnlabeledImages(str(folder))
    found = [images.get_data_info(i)['img_path'] for i in range(len(images))]
    assert found == [
        str(folder / name) for name in ('a.JPG', 'b.png', 'deep/er/c.jpeg')
    ]


def test_a_pipeline_reads_them(folder):
    images = DATASETS.build(
        dict(
            type='mmrazor_brecq.UnlabeledImages',
            data_root=str(folder),
            pipeline=[LoadImageFromFile()],
        )
    )
    assert [images[i]['img'].shape for i in range(3)] == 3 * [(4, 5, 3)]


def test_other_names_can_be_asked_for(folder):
    assert len(UnlabeledImages(str(folder), extensions=['.png'])) == 1


def test_a_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match='data_root'):
        UnlabeledImages(str(tmp_path))
    with pytest.raises(FileNotFoundError, match='none.*which is no folder'):
        UnlabeledImages(str(tmp_path / 'none'))


@pytest.mark.parametrize('below', ['', 'some'])
@pytest.mark.parametrize(
    'name, text',
    [
        ('some.txt', 'b.png 3\na.png 0\n\n'),
        ('some.txt', 'b.png\na.png'),
        (
            'some.json',
            '{"images": [{"file_name": "b.png"}, {"file_name": "a.png"}]}',
        ),
    ],
)
def test_takes_the_images_of_a_list(tmp_path, below, name, text):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    for image in 'abc':
        Image.new('RGB', (4, 4)).save(folder / f'{image}.png')
    (tmp_path / name).write_text(text)
    dataset = UnlabeledImages(str(tmp_path), ann_file=name)
    paths = [dataset[i]['img_path'] for i in range(len(dataset))]
    assert paths == [str(folder / 'b.png'), str(folder / 'a.png')]


def test_says_where_it_looked_for_what_a_list_names(tmp_path):
    (tmp_path / 'some.txt').write_text('b.png 3\n')
    with pytest.raises(FileNotFoundError, match='b.png.*some.txt'):
        UnlabeledImages(str(tmp_path), ann_file='some.txt')


def test_says_that_a_list_is_empty(tmp_path):
    (tmp_path / 'some.txt').write_text('\n')
    with pytest.raises(ValueError, match='names no image'):
        UnlabeledImages(str(tmp_path), ann_file='some.txt')
