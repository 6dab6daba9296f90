"""The page of a report: whole, small, safe, and with findings on top."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
import torch

import mmrazor_brecq
from mmrazor_brecq.report import ShownReport, findings, page, write
from mmrazor_brecq.report.html import MAX_BYTES

EVIL = '"><img src=x onerror=alert(1)><script>alert(1)</script>\'{{ 7*7 }}'


@pytest.fixture(scope='module')
def report():
    """Of a residual network, as `quantize` gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 1),
            torch.nn.ConvTranspose2d(8, 4, 2),
        )
        images = torch.randn(32, 3, 8, 8)
    learning = dict(type='BlockReconstructor', iterations=30, batch_size=8)
    model, report = mmrazor_brecq.quantize(
        network.eval(), images, 3, 4, reconstructor=learning
    )
    return report


def units(*costs, **changes):
    unit = dict(
        layers=['conv'],
        bits={'conv': [4, 4]},
        before=2.0,
        after=1.0,
        accepted=True,
        iterations=80,
        seconds=1.0,
        note='',
        losses=[[0, 2.0], [10, float('nan')], [20, 1.0]],
    )
    return [
        dict(unit, name=f'unit{i}', cost=cost, **changes)
        for i, cost in enumerate(costs)
    ]


def tensor(low=0, high=15, counts=(1,) * 64, bits=4, **changes):
    found = dict(bits=bits, low=low, high=high, counts=list(counts))
    found.update({'from': 0, 'to': 2**bits - 1, 'clipped': 0.0}, **changes)
    return found


def layer(name='conv', lost=0, **changes):
    weight = tensor(noise_db=20.0, lost_channels=lost)
    given = tensor(**{'quantizer': name, 'symmetric': False, **changes})
    return dict(
        name=name,
        unit=name,
        kind='Conv2d',
        parameters=9,
        weight=weight,
        input=given,
    )


def made(**changes):
    content = dict(
        units=units(*[1.0] * 10),
        layers=[layer()],
        account=dict(summary='', quantized=1, layers=2, left_float={}),
        weight_bytes=dict(float=4, quantized=1),
        left_out=[],
        seconds=1.0,
    )
    return dict(content, **changes)


def visible(text):
    """The words of a page, without its tags and style."""
    text = re.sub(r'(?s)<style>.*?</style>|<[^>]*>', ' ', text)
    return ' '.join(html.unescape(text).split())


def test_a_report_of_quantize_becomes_a_page(report, tmp_path):
    write(report, tmp_path / 'a.html')
    text = (tmp_path / 'a.html').read_text()
    words = visible(text)
    for part in (
        '3 of 3 layers; 1 left in float',
        'a transposed convolution',
        'The accuracy was not measured',
        '3/4 bits',
        'of the loss',
        'signal to noise',
        's in total',
    ):
        assert part in words, part
    # Bars of three weights and three inputs.
    assert text.count('class="bars" d="M') == 6
    assert text.count('class="curve" d="M') >= 1
    assert 'v-' in text and len(text) < 100_000


def test_the_package_has_it_without_an_import_of_its_own():
    # Another module may have imported it already, so ask as Python asks.
    assert mmrazor_brecq.__getattr__('report') is mmrazor_brecq.report


def test_the_page_is_the_same_from_json(report):
    assert page(json.loads(json.dumps(report))) == page(report)


def test_a_page_asks_for_nothing_and_runs_nothing(report):
    text = page(report)
    assert not re.search(r'https?:|<script|<link|@import|url\(|\bon\w+=', text)
    assert "default-src 'none'" in text
    for rule in 'prefers-color-scheme: dark', '@media print', 'viewport':
        assert rule in text


def evil_report():
    report = made(
        units=units(1.0, 5.0, note=EVIL),
        layers=[layer(EVIL, kind=EVIL)],
        left_out=[dict(image=0, name=EVIL, largest=9.0, times=9.0)],
        unreadable={EVIL: EVIL},
        account=dict(
            summary=EVIL, quantized=1, layers=1, left_float={EVIL: EVIL}
        ),
        versions={EVIL: EVIL},
        identity={EVIL: EVIL},
        device=EVIL,
        **{
            key: {EVIL: 1.0, 'top1': 2.0}
            for key in ('float', 'nearest', 'quantized')
        },
    )
    for unit in report['units']:
        unit.update(name=f'{unit["name"]}{EVIL}', bits={EVIL: [4, 4]})
    report['seconds'] = {EVIL: 1.0, 'total': 2.0}
    return report


def test_what_a_name_holds_is_text():
    text = page(evil_report())
    assert text.count('alert(1)') > 20
    assert '<img' not in text and '<script' not in text
    assert '49' not in visible(text)
    assert not re.search(r'<[^>]*alert[^<]*"[^<]*>alert', text)


def test_a_large_network_has_a_small_page():
    names = [f'{i}.' + 'layer.' * 300 for i in range(3000)]
    layers = [layer(name) for name in names]
    left = dict.fromkeys(names, 'because ' * 50)
    account = dict(summary='', quantized=1, layers=1, left_float=left)
    many = [dict(units(1.0)[0], name=name) for name in names]
    text = page(made(layers=layers, units=many, account=account))
    assert len(text.encode()) <= MAX_BYTES
    assert 'more, in report.json' in text


def test_a_report_of_an_earlier_version_has_a_page():
    old = made(seconds=dict(total=1.0, evaluate=0.5), peak_memory_mb=1)
    del old['layers'], old['left_out']
    for unit in old['units']:
        del unit['losses'], unit['cost']
    metrics = dict.fromkeys(('float', 'nearest', 'quantized'), {'top1': 90.0})
    assert 'top1' in visible(page(dict(old, **metrics)))


@pytest.mark.parametrize('content', [{}, {'a': 1}])
def test_what_is_no_report_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match='expected `units` and `account`'):
        write(content, tmp_path / 'a.html')
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_it_in_a_frame_of_its_own(report):
    assert isinstance(report, ShownReport)
    shown = report._repr_html_()
    frame = re.fullmatch(
        r'<iframe sandbox [^<>]*srcdoc="([^"]*)"></iframe>', shown
    )
    assert html.unescape(frame[1]) == page(report)


FOUND = {
    'cost': (dict(units=units(9.0, *[1.0] * 9)), "{'unit0.*': 8}"),
    'no better': (
        dict(units=units(1.0, accepted=False, note='did not fall')),
        'model.reconstructor.iterations',
    ),
    'clipped': (dict(layers=[layer(clipped=0.1)]), "{'conv': dict(activation"),
    'wasted': (dict(layers=[layer(low=0, high=4)]), 'symmetric=False'),
    'few integers': (
        dict(layers=[layer(bits=8, high=255, counts=[990, 1] + [0] * 62)]),
        'LpObserver',
    ),
    'became zero': (dict(layers=[layer(lost=2)]), 'dict(weight=8)'),
    'constant': (dict(layers=[layer(low=0, high=0)]), "{'conv': None}"),
    'far outside': (
        dict(left_out=[dict(image=3, name='a.png', largest=9.0, times=7.0)]),
        'pipeline',
    ),
    'cannot be read': (dict(unreadable={'b.png': 'short'}), 'data_root'),
    'worse than nearest': (
        dict(divergence=dict(nearest=1.0, quantized=2.0)),
        'num_images',
    ),
}


@pytest.mark.parametrize('kind', FOUND)
def test_each_trouble_is_found_with_its_key(kind):
    changes, cure = FOUND[kind]
    (found,) = findings(made(**changes))
    assert kind in found.title and cure in found.cure
    text = visible(page(made(**changes)))
    assert found.title in text and found.cure in text


def test_a_good_report_has_no_findings():
    assert not findings(made())
    assert 'None: no unit' in visible(page(made()))


def test_what_is_not_finite_has_no_share():
    broken = units(1.0, float('nan'), float('inf'), before=float('nan'))
    words = visible(page(made(units=broken)))
    assert '100.0% of the loss' in words and 'nan' in words


def test_of_many_places_some_are_listed():
    many = [layer(f'conv{i}', clipped=0.1 + i / 100) for i in range(20)]
    (found,) = findings(made(layers=many))
    assert (len(found.places), found.more) == (8, 12)
    assert found.places[0].name == 'conv19'


BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'google-chrome', 'chrome'))),
    None,
)
PROBE = """<body><script>
const frame = document.createElement('iframe');
frame.style = 'width:360px;height:640px';
frame.srcdoc = %s;
window.alert = () => document.title = 'ran';
frame.onload = () => {
  const page = frame.contentDocument, first = page.querySelector('details');
  frame.contentWindow.alert = window.alert;
  const closed = first.getBoundingClientRect().height;
  first.querySelector('summary').click();
  const bars = page.querySelector('.bars').getBBox();
  document.body.innerText = JSON.stringify([
    page.documentElement.scrollWidth, page.scripts.length, page.images.length,
    first.getBoundingClientRect().height - closed, bars.width, bars.height,
    page.querySelectorAll('.unit').length, document.title]);
};
document.body.append(frame);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason='there is no Chromium')
def test_a_browser_shows_it_on_a_phone(report, tmp_path):
    for content in report, evil_report():
        source = json.dumps(page(content)).replace('</', '<\\/')
        (tmp_path / 'a.html').write_text(PROBE % source)
        done = subprocess.run(
            [BROWSER, '--headless', '--no-sandbox', '--disable-gpu']
            + [f'--user-data-dir={tmp_path}/profile', '--dump-dom']
            + [f'file://{tmp_path}/a.html'],
            capture_output=True,
            text=True,
            timeout=120,
        )
        found = json.loads(re.search(r'\[[\d.,]+,"[^]]*\]', done.stdout)[0])
        wide, scripts, images, opened, width, height, boxes, title = found
        assert wide <= 360 and not scripts and not images and not title
        assert opened > 60 and width > 50 and height > 20
        assert boxes == len(content['units'])
