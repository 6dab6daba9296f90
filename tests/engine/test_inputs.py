"""Networks that take several inputs, or integers, are quantized as well."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mmrazor_brecq
from mmrazor_brecq.graph import Arguments
from mmrazor_brecq.layers import is_quantizable, quant_layers

COUNT, TOKENS, LENGTH, WIDTH = 40, 20, 6, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(x + self.two(self.one(x).relu()))


class Language(nn.Module):
    """Tokens and their mask, as a transformer for language takes them."""

    def __init__(self, positions=False):
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, input_ids, attention_mask=None, labels=None):
        assert labels is None
        x = self.blocks(self.table(input_ids))
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        return self.head(x.mean(1))


class Pair(nn.Module):
    """An image and some numbers that belong to it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.block = Block()
        self.more = nn.Linear(5, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, image, numbers, scale=1.0):
        x = self.conv(image).relu().mean((2, 3)) * scale
        return self.head(self.block(x + self.more(numbers)))


def make(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKENS, (COUNT, LENGTH), generator=generator)
    return dict(
        ids=ids,
        mask=(torch.arange(LENGTH) < 1 + ids[:, :1] % LENGTH).long(),
        image=torch.randn(COUNT, 3, 8, 8, generator=generator),
        numbers=torch.randn(COUNT, 5, generator=generator),
        labels=torch.arange(COUNT) % 4,
    )


def loader(*columns):
    return DataLoader(TensorDataset(*columns), batch_size=16)


def dicts(**columns):
    for k in range(0, COUNT, 16):
        yield {name: x[k : k + 16] for name, x in columns.items()}


def sources(data):
    """Every form of the data of a network, and its own arguments."""
    ids, mask, image, numbers, labels = data.values()
    words = dict(input_ids=ids, attention_mask=mask)
    return {
        'tokens': (Language, ids, (ids,), {}),
        'a loader of tokens': (Language, loader(ids, labels), (ids,), {}),
        'dicts of tokens': (
            Language,
            dicts(**words, labels=labels, name=['a'] * COUNT),
            (),
            words,
        ),
        'a loader of pairs': (
            Pair,
            loader(image, numbers, labels),
            (image, numbers),
            {},
        ),
        'pairs in pairs': (
            Pair,
            [((image[:20], numbers[:20]), 0), ((image[20:], numbers[20:]), 1)],
            (image, numbers),
            {},
        ),
        'dicts in any order': (
            Pair,
            dicts(numbers=numbers, target=labels, image=image),
            (),
            dict(image=image, numbers=numbers),
        ),
    }


FAST = dict(type='BlockReconstructor', iterations=4, batch_size=8)


@pytest.mark.parametrize(
    'form', sources(dict.fromkeys('abcde', torch.zeros(COUNT, 1)))
)
def test_a_network_is_quantized_on_all_that_it_takes(data, form, tmp_path):
    """As well as on images: it learns, agrees, is saved and loaded."""
    kind, source, args, kwargs = sources(data)[form]
    network = make(kind)
    expected = network(*args, **kwargs)
    model, report = mmrazor_brecq.quantize(
        network, source, 4, 8, reconstructor=FAST
    )
    layers = [m for m in network.modules() if is_quantizable(m)]
    assert len(quant_layers(model)) == len(layers)
    assert all(unit['before'] >= 0 for unit in report['units'])
    found = model(*args, **kwargs)
    assert (found - expected).norm() < 0.2 * expected.norm()
    path = str(tmp_path / 'quantized.pth')
    mmrazor_brecq.save(model, path)
    loaded = mmrazor_brecq.load(make(kind), path)
    assert torch.equal(loaded(*args, **kwargs), found)


def test_tokens_of_an_odd_sample_do_not_spoil_the_others(data, warnings_log):
    """One sample of numbers in another unit is named and left out whole."""
    numbers = data['numbers'].clone()
    numbers[7] *= 1000
    _, report = mmrazor_brecq.quantize(
        make(Pair),
        loader(data['image'], numbers),
        reconstructor=dict(type='NearestRounding', batch_size=8),
    )
    (left,) = report['left_out']
    assert left['image'] == 7
    assert any('image 7 is an outlier' in line for line in warnings_log)


def test_the_last_pass_learns_from_tokens(data):
    model, _ = mmrazor_brecq.quantize(
        make(Language),
        data['ids'],
        reconstructor=dict(
            FAST, refiner=dict(type='NetworkRefiner', iterations=3)
        ),
    )
    assert model(data['ids']).isfinite().all()


@pytest.mark.parametrize(
    'kind, source, words',
    [
        (Pair, [torch.zeros(4, 3, 8, 8)], 'needs .*image.*numbers'),
        (Pair, [dict(image=torch.zeros(4, 3, 8, 8))], "'numbers' is missing"),
        (
            Pair,
            [(torch.zeros(4, 3, 8, 8), torch.zeros(3, 5))],
            '4 rows of input 0, 3 rows of input 1',
        ),
        (
            Language,
            [torch.zeros(4, 6, dtype=torch.long), torch.zeros(4, 7).long()],
            r'Batch 1 of `images` has images of \(7,\).*one size',
        ),
        (Pair, torch.zeros(4, 3, dtype=torch.long), 'images=.*torch.int64'),
    ],
)
def test_what_a_network_cannot_take_is_refused(kind, source, words):
    with pytest.raises(ValueError, match=words):
        mmrazor_brecq.quantize(make(kind), source)


def test_such_networks_are_not_exported(data, tmp_path):
    model, _ = mmrazor_brecq.quantize(
        make(Language),
        data['ids'],
        reconstructor=dict(type='NearestRounding', batch_size=8),
    )
    with pytest.raises(ValueError, match='takes several inputs, or integers'):
        mmrazor_brecq.export_onnx(
            model, data['image'], str(tmp_path / 'file.onnx')
        )


@pytest.mark.parametrize(
    'text',
    ['', '{}', '[]', '{"args": [["float32", -1]], "kwargs": {}}',
     '{"args": [["float32", 99999, 99999]], "kwargs": {}}',
     '{"args": [["object", 1]], "kwargs": {}}',
     '{"args": [], "kwargs": 3}', '{"args": 7, "kwargs": {}}'],
)  # fmt: skip
def test_a_damaged_form_of_inputs_is_refused(text):
    form = torch.tensor([*text.encode()], dtype=torch.uint8)
    with pytest.raises(ValueError, match='input_form'):
        Arguments.example(form, torch.device('cpu'))
