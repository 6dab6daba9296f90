"""What README and the pages in docs/ promise of themselves."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from mmrazor_brecq.config.recipe import known_parts

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'CHANGELOG')),
    *sorted(
        page
        for page in (ROOT / 'docs').rglob('*.md')
        if '_build' not in page.parts
    ),
]
#: A fenced block, or code in a line: what looks like a link there is none.
CODE = re.compile(r'^(```+).*?^\1\s*$|(`+)(?!`).+?(?<!`)\2(?!`)', re.M | re.S)

each_page = pytest.mark.parametrize(
    'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def links(page: Path) -> list[str]:
    """The targets of a page's links and images that are no addresses."""
    text = CODE.sub('', page.read_text(encoding='utf-8'))
    targets = re.findall(r'\]\(\s*([^)\s]+)', text)
    return [x for x in targets if not re.match(r'[a-z]+:', x)]


def anchors(page: Path) -> set[str]:
    """What a link into a page can name, as GitHub and MyST spell it."""
    found = set()
    text = re.sub(
        r'^(```+).*?^\1\s*$', '', page.read_text('utf-8'), flags=re.M | re.S
    )
    for title in re.findall(r'^#+ (.+)$', text, re.M):
        words = unicodedata.normalize('NFKC', title.strip().lower())
        found.add(re.sub(r'[^\w\- ]', '', words).replace(' ', '-'))
    return found


def test_readme_is_a_front_door():
    words = (ROOT / 'README.md').read_text(encoding='utf-8').split()
    assert len(words) <= 1200


@pytest.mark.parametrize('kind', ['bits', 'schedule'])
def test_readme_names_all_recipes_and_schedules(kind):
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    names = known_parts(kind)
    assert len(names) > 2
    for name in names:
        assert f'`{name}`' in text


@each_page
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition('#')
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@each_page
def test_links_stay_in_the_checkout(page):
    for link in links(page):
        target = (page.parent / link.partition('#')[0]).resolve()
        assert target.is_relative_to(ROOT), link


def test_every_page_is_in_the_table_of_contents():
    """From index.md on, as the site's sidebar has them."""
    docs = ROOT / 'docs'
    reached, todo = set(), [docs / 'index.md']
    while todo:
        page = todo.pop()
        reached.add(page)
        text = page.read_text(encoding='utf-8')
        for tree in re.findall(r'```\{toctree\}\n(.*?)```', text, re.S):
            names = re.findall(r'^(?!:)(\S+)$', tree, re.M)
            todo += [page.parent / f'{name}.md' for name in names]
    assert reached == {page for page in PAGES if page.is_relative_to(docs)}


def test_the_picture_is_what_its_script_draws(tmp_path):
    figures = ROOT / 'docs/figures'
    script = tmp_path / 'overview.py'
    script.write_text((figures / 'overview.py').read_text('utf-8'), 'utf-8')
    subprocess.run([sys.executable, str(script)], check=True)
    drawn = (tmp_path / 'overview.svg').read_text('utf-8')
    assert drawn == (figures / 'overview.svg').read_text('utf-8')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('[a](b.md) and ![c](d.png)', ['b.md', 'd.png']),
        ('[a](https://a.org/b) [b](#c)', ['#c']),
        ('`[a](b.md)` and\n\n```python\nx[0](y)\n```\n', []),
    ],
)
def test_would_notice_a_link(text, expected, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(text)
    assert links(page) == expected


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('furo')
    run = subprocess.run(
        [
            *(sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q'),
            *('-b', 'html', '-d', str(tmp_path / 'trees'), 'docs'),
            str(tmp_path / 'html'),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    # A page fetches nothing but what lies beside it, fonts included.
    fetched = re.compile(
        r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//'
        r'|<link(?![^>]+rel="canonical")[^>]+href="(?:https?:)?//'
    )
    pages = list((tmp_path / 'html').rglob('*.html'))
    assert len(pages) > 20
    for page in pages:
        assert not fetched.search(page.read_text('utf-8')), page
    for style in (tmp_path / 'html').rglob('*.css'):
        text = style.read_text('utf-8')
        assert not re.search(r'(@import|url\()\s*["\']?(https?:)?//', text)
