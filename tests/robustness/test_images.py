"""A calibration folder as somebody's disk has it."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import uuid
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from mmrazor_brecq.activations import Store
from mmrazor_brecq.config.load import check_data
from mmrazor_brecq.datasets import UnlabeledImages
from mmrazor_brecq.datasets.readable import EXTENSIONS, why_unreadable
from mmrazor_brecq.engine.calibration import collect_images
from mmrazor_brecq.engine.image_set import ImageSet
from mmrazor_brecq.engine.loaders import MAX_UNREADABLE, build_dataloader
from mmrazor_brecq.engine.settings import check_settings
from mmrazor_brecq.reconstruction import BlockReconstructor

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
RED, GREEN, BLACK = [0, 0, 240], [0, 240, 0], [0, 0, 0]


def picture():
    """Red above, green on the left below, black on the right."""
    array = np.zeros((40, 60, 3), np.uint8)
    array[:20], array[20:, :30] = RED[::-1], GREEN[::-1]
    return Image.fromarray(array)


def encoded(format='JPEG', image=None, **options):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    body = kind + data
    return (
        struct.pack('>I', len(data))
        + body
        + struct.pack('>I', zlib.crc32(body))
    )


def bomb(side=100_000):
    """A PNG that claims ten thousand million pixels in a hundred bytes."""
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(bytes(100)))
        + chunk(b'IEND', b'')
    )


def jpeg_bomb(side):
    """A JPEG with another size in its header."""
    data = encoded()
    start = data.index(b'\xff\xc0') + 5
    return data[:start] + struct.pack('>HH', side, side) + data[start + 4 :]


def damaged_png():
    """Whole at both ends, and not in the middle."""
    data = bytearray(encoded('PNG'))
    at = data.index(b'IDAT') + 12
    data[at : at + 20] = b'\xff' * 20
    return bytes(data)


BAD = {
    'empty.jpg': b'',
    'text.jpg': b'no image\n' * 100,
    'short.jpg': encoded(quality=95)[:900],
    'headless.jpg': encoded()[100:],
    'two_bytes.jpg': b'\xff\xd8',
    'short.png': encoded('PNG')[:-60],
    'bomb.png': bomb(),
    'less_of_a_bomb.png': bomb(12_000),
    'small_bomb.png': bomb(4_500),
    'small_bomb.jpg': jpeg_bomb(6_000),
    'thin_bomb.png': encoded('PNG', Image.new('1', (60_000, 1))),
    'short.gif': encoded('GIF')[:90],
    'short.bmp': encoded('BMP')[:-99],
    'short.tif': encoded('TIFF')[:-99],
    'short_lzw.tiff': encoded('TIFF', compression='tiff_lzw')[:99],
    'damaged.png': damaged_png(),
    'nothing.webp': b'RIFF\x00\x00\x00\x00WEBP',
    'short.webp': encoded('WEBP', lossless=True)[:-40],
    'page.png': b'<html>404</html>',
    'script.tif': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
    'pickle.bmp': b'\x80\x04\x95',
}


SPECIAL = 'pipe', 'link_to_pipe', 'endless', 'broken', 'itself', 'folder'
SPECIAL = [f'{name}.jpg' for name in (*SPECIAL, 'socket')]


def add_special(folder):
    """What waits for somebody, or never ends, when it is opened."""
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'link_to_pipe.jpg').symlink_to(folder / 'pipe.jpg')
    (folder / 'endless.jpg').symlink_to('/dev/zero')
    (folder / 'broken.jpg').symlink_to(folder / 'none')
    (folder / 'itself.jpg').symlink_to(folder / 'itself.jpg')
    (folder / 'folder.jpg').mkdir()
    (folder / 'loop').symlink_to(folder)
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(folder)  # Its name must be short.
        server.bind('socket.jpg')
        os.chdir(place)


def fill(folder, count=150, **bad):
    for i in range(count):
        picture().save(folder / f'good{i:03d}.png')
    for name, data in bad.items():
        (folder / name).write_bytes(data)


class Model(nn.Linear):
    """What is asked of a model when images are collected."""

    architecture = nn.Identity()
    reconstructor = BlockReconstructor(batch_size=2)

    def __init__(self):
        super().__init__(1, 1)

    def data_preprocessor(self, data, training):
        return dict(data, inputs=torch.stack(data['inputs']).float())


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='PackClsInputs', meta_keys=['img_path']),
]


def in_mmcls():
    """Look for transforms where configs look for them."""
    DefaultScope.get_instance(uuid.uuid4().hex, scope_name='mmcls')


SOURCES = 'folder', 'list', 'mmcls'
#: What is known of a file does not hang on who named it.
of_a_folder = pytest.mark.parametrize('source', SOURCES[:1], indirect=True)


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    """The config of a data set of all files below a folder."""
    in_mmcls()
    ours = 'mmrazor_brecq.UnlabeledImages'
    root = dict(data_root=str(tmp_path), pipeline=list(PIPELINE))

    def found():
        names = [
            os.path.relpath(os.path.join(place, name), tmp_path)
            for place, folders, files in os.walk(tmp_path)
            for name in (*folders, *files)
            if name.lower().endswith(EXTENSIONS)
        ]
        return sorted(names)

    def config():
        if request.param == 'folder':
            return dict(root, type=ours)
        if request.param == 'list':
            (tmp_path / 'list.txt').write_text('\n'.join(found()))
            return dict(root, type=ours, ann_file='list.txt')
        lines = [f'{name} 0' for name in found()]
        (tmp_path / 'meta.txt').write_text('\n'.join(lines))
        return dict(root, type='mmcls.CustomDataset', ann_file='meta.txt')

    return config


def collect(dataset, count=24, share=MAX_UNREADABLE, **options):
    """Calibration images of a config, and what is known of them."""
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=8, dataset=dataset, sampler=sampler, **options)
    images = ImageSet()
    rows = collect_images(
        Model(), build_dataloader(loader), count, images, Store(), share
    )
    del images.names[len(rows) :]  # Those of the last batch may be more.
    return torch.cat(list(rows.split())), images


def taken(images):
    return [os.path.basename(name) for name in images.names]


@of_a_folder
@pytest.mark.parametrize('name', BAD)
def test_what_is_no_image_is_left_out_and_named(
    tmp_path, source, name, warnings_log
):
    fill(tmp_path, 30, **{f'good000{name}': BAD[name]})
    found, images = collect(source())
    assert found.shape == (24, 3, 40, 60)
    assert taken(images) == [f'good{i:03d}.png' for i in range(24)]
    assert list(images.unreadable) == [str(tmp_path / f'good000{name}')]
    (line,) = warnings_log
    assert line.startswith('1 calibration image cannot be read')
    assert name in line and '\n' not in line


def test_special_files_are_never_opened(tmp_path, source, warnings_log):
    fill(tmp_path, 4)
    add_special(tmp_path)
    found, images = collect(source(), 11, share=0.9)
    assert len(found) == 11 and set(taken(images)) == {
        f'good{i:03d}.png' for i in range(4)
    }
    bad = [os.path.basename(path) for path in images.unreadable]
    assert sorted(bad) == sorted(SPECIAL)
    (line,) = warnings_log
    for words in ('a pipe, no', 'a device', 'No such file', 'symbolic'):
        assert words in ' '.join(images.unreadable.values()), words
    assert 'and 2 more' in line


def test_what_may_not_be_read_is_named(
    tmp_path, source, monkeypatch, warnings_log
):
    """Root may read all, so it is told that it may not."""
    fill(tmp_path, 30)
    opened = os.open

    def refuses(path, *args, **kwargs):
        if str(path).endswith('good002.png'):
            raise PermissionError(13, 'Permission denied', path)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, 'open', refuses)
    assert 'good002.png' not in taken(collect(source())[1])
    assert "good002.png' (Permission denied)" in warnings_log[0]


@pytest.mark.parametrize(
    'share, count, bad, allowed',
    [(0.01, 4, 1, 1), (0.01, 200, 2, 2), (0, 4, 1, 0), (0.5, 8, 3, 4)],
)
def test_up_to_a_share_of_them(tmp_path, source, share, count, bad, allowed):
    # Workers hand what they find to the process that counts.
    options = dict(num_workers=2 * (count == 8))
    for i in range(bad):
        (tmp_path / f'bad{i}.jpg').write_bytes(b'')
    fill(tmp_path, count)
    if bad <= allowed:
        found, images = collect(source(), count, share, **options)
        assert len(found) == count and len(images.unreadable) == bad
        assert len(set(taken(images))) == count
        for i in range(bad, allowed + 1):
            (tmp_path / f'bad{i}.jpg').write_bytes(b'')
    with pytest.raises(ValueError) as error:
        collect(source(), count, share, **options)
    said = str(error.value)
    assert said.startswith(f'{allowed + 1} of ')
    assert f'test_cfg.calibration.max_unreadable={share}' in said
    assert "bad0.jpg' (0 bytes)" in said and '\n' not in said


def test_none_that_can_be_read(tmp_path, source):
    for i in range(9):
        (tmp_path / f'bad{i}.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='9 of 9 .* and 4 more'):
        collect(source(), 1024, 1.0)


def test_where_none_are_left_some_count_twice(tmp_path, source):
    """Batches keep their sizes, as with those that are out of line."""
    fill(tmp_path, 9, **{'good0035.png': damaged_png()})
    found, images = collect(source(), 1024)
    assert len(found) == 10
    assert taken(images) == [f'good{i:03d}.png' for i in (*range(9), 0)]


def test_all_that_is_read_is_as_without_them(tmp_path, source):
    for i in range(30):
        Image.new('RGB', (5, 4), (i, 2 * i, 3 * i)).save(
            tmp_path / f'{i:03d}.png'
        )
    before, _ = collect(source())
    (tmp_path / '0031.jpg').write_bytes(b'')
    (tmp_path / '0141.jpg').write_bytes(b'')
    after, images = collect(source(), share=0.1)
    assert torch.equal(before, after) and len(images.unreadable) == 2


@pytest.mark.parametrize('value', [-0.1, 1.5, 'no', True, None, float('nan')])
def test_a_share_that_is_none(value):
    config = Config.fromfile(CONFIG)
    config.test_cfg.calibration.max_unreadable = value
    with pytest.raises(ValueError, match=r'calibration\.max_unreadable'):
        check_settings(config)


def test_names_of_all_kinds(tmp_path, source, warnings_log):
    odd = ['a b.png', 'ümläut-✓.png', '-rf.png', 'q\'u"ote.png', 'CAPS.PNG']
    odd += ['%s{x}.png', '.hidden.png', 'a' * 200 + '.png', 'file:.png']
    odd += ['$(touch pwned).png', '[1].png', 'a.jpg.png']
    for name in odd:
        (tmp_path / name).write_bytes(encoded('PNG'))
    (tmp_path / 'bad[red]✓.png').write_bytes(b'')
    _, images = collect(source(), len(odd))
    assert sorted(taken(images)) == sorted(odd)
    assert 'bad[red]✓.png' in warnings_log[0]


def test_names_that_no_list_can_hold(tmp_path, warnings_log):
    odd = ['new\nline.png', '\udcff.png', 'label 3.png']
    for name in odd:
        (tmp_path / name).write_bytes(encoded('PNG'))
    (tmp_path / 'bad\n\udcfe.png').write_bytes(b'')
    in_mmcls()
    dataset = dict(
        type='mmrazor_brecq.UnlabeledImages',
        data_root=str(tmp_path),
        pipeline=PIPELINE,
    )
    _, images = collect(dataset, 3)
    assert sorted(taken(images)) == sorted(odd)
    (line,) = warnings_log
    line.encode('utf-8')
    assert '\n' not in line and 'bad\\n' in line


def rotated(format, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(format, exif=exif, **options)


ANIMATED = dict(
    save_all=True, append_images=[picture().transpose(Image.ROTATE_180)]
)
KINDS = {
    'plain.jpg': encoded(quality=95),
    'progressive.jpg': encoded(quality=95, progressive=True),
    'cmyk.jpg': encoded(image=picture().convert('CMYK'), quality=95),
    'padded.jpg': encoded(quality=95) + bytes(5000),
    'palette.png': encoded('PNG', picture().quantize(8)),
    'alpha.png': encoded('PNG', picture().convert('RGBA')),
    'sixteen.png': cv2.imencode(
        '.png', np.array(picture())[..., ::-1].astype(np.uint16) * 257
    )[1].tobytes(),
    'sixteen.tif': cv2.imencode(
        '.tif', np.array(picture())[..., ::-1].astype(np.uint16) * 257
    )[1].tobytes(),
    'cmyk.tif': encoded('TIFF', picture().convert('CMYK')),
    'animated.png': encoded('PNG', **ANIMATED),
    'animated.webp': encoded('WEBP', lossless=True, **ANIMATED),
    'animated_gif.jpg': encoded('GIF', **ANIMATED),
    'png.jpg': encoded('PNG'),
    'plain.bmp': encoded('BMP'),
}


def only(tmp_path, source, name, data):
    """The image of a file as it comes to the network, in BGR."""
    for twin in 'ab':
        (tmp_path / f'{twin}{name}').write_bytes(data)
    found, images = collect(source(), 2)
    assert not images.unreadable
    return found[0].permute(1, 2, 0).numpy().astype(int)


@of_a_folder
@pytest.mark.parametrize('name', KINDS)
def test_all_kinds_come_as_eight_bits_of_three_colors(tmp_path, source, name):
    """The first picture of several, and the same as a plain one."""
    image = only(tmp_path, source, name, KINDS[name])
    assert image.shape == (40, 60, 3)
    for (row, column), color in {
        (5, 5): RED,
        (35, 5): GREEN,
        (35, 55): BLACK,
    }.items():
        assert np.abs(image[row, column] - color).max() < 12


@of_a_folder
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_camera_s_rotation_is_applied(tmp_path, source, kind, orientation):
    options = dict(JPEG=dict(quality=95), WEBP=dict(lossless=True))
    data = rotated(kind, orientation, **options.get(kind, {}))
    image = only(tmp_path, source, f'a.{kind.lower()}', data)
    turn = {
        2: Image.FLIP_LEFT_RIGHT,
        3: Image.ROTATE_180,
        4: Image.FLIP_TOP_BOTTOM,
        5: Image.TRANSPOSE,
        6: Image.ROTATE_270,
        7: Image.TRANSVERSE,
        8: Image.ROTATE_90,
    }.get(orientation)
    upright = picture() if turn is None else picture().transpose(turn)
    expected = np.array(upright)[..., ::-1].astype(int)
    assert image.shape == expected.shape
    assert np.median(np.abs(image - expected)) < 8


@of_a_folder
def test_gray_of_sixteen_bits_is_not_cut_off(tmp_path, source):
    gray = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, 'PNG')
    image = only(tmp_path, source, 'a.png', buffer.getvalue())
    assert np.abs(image[..., 0] - gray // 256).max() <= 1


def test_damage_shows_when_it_is_decoded(tmp_path):
    """Not when the file is looked into, for that would take as long."""
    path = tmp_path / 'a.png'
    path.write_bytes(damaged_png())
    assert why_unreadable(str(path)) is None


def test_a_mistake_of_the_pipeline_is_not_the_image_s(tmp_path, source):
    fill(tmp_path, 3)
    dataset = source()
    dataset['pipeline'].insert(1, dict(type=Fails))
    with pytest.raises(KeyError, match='my own'):
        collect(dataset, 3)


class Fails:
    def __call__(self, results):
        raise KeyError('my own')


def test_images_in_memory_have_no_files():
    dataset = dict(type=Memory, data_prefix={}, serialize_data=False)
    assert len(collect(dataset, 3)[0]) == 3


class Memory(BaseDataset):
    def load_data_list(self):
        return [dict(inputs=torch.zeros(3, 4, 4)) for _ in range(3)]


def test_data_sets_are_watched_within_others(tmp_path, source):
    """Such as those that join or repeat them."""
    fill(tmp_path, 3, **{'bad.png': b''})
    twice = dict(type='RepeatDataset', times=2, dataset=source())
    joined = dict(type='ConcatDataset', datasets=[twice, source()])
    found, images = collect(joined, 9)
    assert len(found) == 9
    assert list(images.unreadable) == [str(tmp_path / 'bad.png')]


def test_files_that_lie_elsewhere_are_left_to_their_reader():
    for path in ('s3://bucket/a.jpg', 'http://host/a.png', '/none/a.jpg'):
        assert why_unreadable(path) is None


@pytest.mark.parametrize('first', [True, False])
def test_a_list_that_names_what_is_not_there(
    tmp_path, source, first, warnings_log
):
    fill(tmp_path, 3)
    dataset = source()
    if 'ann_file' not in dataset:
        pytest.skip('a folder has only what is there')
    names = ['good000.png 1', 'good001.png 1']
    names.insert(0 if first else 1, 'none.png 0')
    (tmp_path / dataset['ann_file']).write_text('\n'.join(names))
    _, images = collect(dataset, 2)
    assert taken(images) == ['good000.png', 'good001.png']
    assert "none.png' (No such file" in warnings_log[0]


@pytest.mark.parametrize(
    'content', [b'\xff\xfe\x00', b'{"images": 3}', b'[1]', b'{', b'[' * 99_999]
)
def test_a_list_that_is_none(tmp_path, content):
    fill(tmp_path, 2)
    (tmp_path / 'list.json').write_bytes(content)
    with pytest.raises(ValueError, match='list.json.*expected a text'):
        UnlabeledImages(str(tmp_path), ann_file='list.json')


def test_a_list_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / 'list.txt')
    with pytest.raises(ValueError, match='list.txt.*no regular file'):
        UnlabeledImages(str(tmp_path), ann_file='list.txt')
    config = Config.fromfile(CONFIG)
    config.test_cfg.calibration.dataloader.dataset = dict(
        type='CustomDataset', data_root=str(tmp_path), ann_file='list.txt'
    )
    with pytest.raises(ValueError, match='no regular file.*ann_file'):
        check_data(config, ['test_cfg.calibration.dataloader'])


@of_a_folder
def test_a_folder_that_may_not_be_looked_into(
    tmp_path, source, monkeypatch, warnings_log
):
    fill(tmp_path, 3)
    (tmp_path / 'closed').mkdir()
    scan = os.scandir

    def refuses(path):
        if str(path).endswith('closed'):
            raise PermissionError(13, 'Permission denied', path)
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuses)
    assert len(UnlabeledImages(str(tmp_path))) == 3
    assert "closed' cannot be read (Permission" in warnings_log[0]


@of_a_folder
def test_a_file_of_gigabytes_is_not_read(tmp_path, source, warnings_log):
    fill(tmp_path, 30)
    with open(tmp_path / 'a_large.jpg', 'wb') as file:
        file.write(encoded())
        file.truncate(40 * 2**30)
    collect(source())
    assert '42,949,672,960 bytes' in warnings_log[0]


def test_larger_images_can_be_allowed(tmp_path, monkeypatch):
    """As OpenCV, that reads them, has it."""
    path = str(tmp_path / 'a.png')
    picture().save(path)
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', '2399')
    assert '60 x 40 pixels in' in why_unreadable(path)
    assert 'OPENCV_IO_MAX_IMAGE_PIXELS' in why_unreadable(path)
    (tmp_path / 'bomb.png').write_bytes(bomb())
    monkeypatch.setenv('OPENCV_IO_MAX_IMAGE_PIXELS', str(10**12))
    assert why_unreadable(path) is None
    assert why_unreadable(str(tmp_path / 'bomb.png')) is None


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_a_large_photograph_is_no_bomb(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 9, (90, 120, 3), np.uint8)
    image = Image.fromarray(noise).resize((6_000, 4_500), Image.NEAREST)
    image.save(tmp_path / 'a.png', kind)
    assert why_unreadable(str(tmp_path / 'a.png')) is None


def test_no_memory_goes_to_what_files_claim(tmp_path):
    fill(tmp_path, 30, **BAD)
    add_special(tmp_path)
    for kind in range(20):
        (tmp_path / f'bomb{kind}.png').write_bytes(bomb(5_000 + kind))
        (tmp_path / f'bomb{kind}.jpg').write_bytes(jpeg_bomb(11_000 + kind))
    code = (
        'import resource, sys\n'
        'from test_images import PIPELINE, collect, in_mmcls\n'
        'in_mmcls()\n'
        'peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n'
        'before, kind = peak(), "mmrazor_brecq.UnlabeledImages"\n'
        'dataset = dict(type=kind, data_root=sys.argv[1])\n'
        'dataset["pipeline"] = PIPELINE\n'
        'found, images = collect(dataset, 999, 1.0)\n'
        'print(len(found), len(images.unreadable), peak() - before)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert result.stdout, result.stderr
    good, bad, kilobytes = map(int, result.stdout.split()[-3:])
    assert good == bad + 30 and kilobytes < 100_000
    assert bad >= 40 + len(BAD) + len(SPECIAL)


@pytest.mark.parametrize('workers', [0, 2])
def test_an_evaluation_wants_all_of_them(tmp_path, source, workers):
    """Of fewer images it would be another one."""
    fill(tmp_path, 4)
    os.mkfifo(tmp_path / 'good0025.png')
    loader = build_dataloader(
        dict(
            batch_size=2,
            num_workers=workers,
            dataset=source(),
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
    )
    assert len(loader.dataset) == 5 and loader.dataset.metainfo is not None
    with pytest.raises(ValueError) as error:
        list(loader)
    assert 'good0025.png' in str(error.value)
    assert 'a pipe' in str(error.value) and '\n' not in str(error.value)
