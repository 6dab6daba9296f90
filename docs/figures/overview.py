"""Draws overview.svg, the picture in README: python docs/figures/overview.py.

The card has a ground of its own, so that it can be read on a light page and
on a dark one.
"""

from __future__ import annotations

from pathlib import Path

STYLE = """
  text { font: 15px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif;
         fill: #1f2937; text-anchor: middle; dominant-baseline: central }
  .small { font-size: 13px; fill: #4b5563 }
  .head { font-weight: 600; font-size: 15px }
  .card { fill: #ffffff; stroke: #d1d5db }
  .row { fill: #f3f4f6; stroke: #9ca3af }
  .float { fill: #dbeafe; stroke: #2563eb }
  .done { fill: #bbf7d0; stroke: #15803d }
  .now { fill: #fed7aa; stroke: #c2410c; stroke-width: 2.5 }
  .wait { fill: #ffffff; stroke: #9ca3af; stroke-dasharray: 5 4 }
  .error { fill: #fef3c7; stroke: #b45309 }
  path { fill: none; stroke: #374151; stroke-width: 1.6;
         marker-end: url(#tip) }
"""
LEFT, STEP, BOX = 208, 162, 124
TEACHER, ERROR, STUDENT = 92, 190, 288


def text(x: float, y: float, words: str, kind: str = '') -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{words}</text>'


def box(
    x: float, y: float, width: float, height: float, kind: str, *lines: str
) -> str:
    """A box around its middle, with one or two lines in it."""
    first = y - 10 * (len(lines) - 1)
    return (
        f'<rect class="{kind}" x="{x - width / 2}" y="{y - height / 2}" '
        f'width="{width}" height="{height}" rx="7"/>'
        + ''.join(
            text(x, first + 20 * i, line, 'small' if i else '')
            for i, line in enumerate(lines)
        )
    )


def arrow(*points: tuple[float, float]) -> str:
    way = ' L'.join(f'{x} {y}' for x, y in points)
    return f'<path d="M{way}"/>'


def row(y: float, title: str, kinds: list[tuple[str, str]]) -> list[str]:
    """A network: its title, its units, and the arrows between them."""
    middle, width = LEFT + 1.5 * STEP, 3 * STEP + BOX + 40
    above = y < ERROR
    parts = [
        f'<rect class="row" x="{middle - width / 2}" '
        f'y="{y - (58 if above else 36)}" width="{width}" height="94" '
        'rx="10"/>',
        text(middle, y - 42 if above else y + 42, title, 'head'),
    ]
    for i, (kind, note) in enumerate(kinds):
        x = LEFT + i * STEP
        parts.append(box(x, y, BOX, 48, kind, f'unit {i + 1}', note))
        if i:
            parts.append(arrow((x - STEP + BOX / 2, y), (x - BOX / 2 - 4, y)))
    return parts


def draw() -> str:
    parts = [box(62, ERROR, 92, 60, 'row', 'images', 'unlabeled')]
    parts += row(TEACHER, 'teacher: float network', [('float', 'float')] * 4)
    student = [('done', 'integers'), ('done', 'integers')]
    student += [('now', 'learning'), ('wait', 'waiting')]
    parts += row(STUDENT, 'student: quantized network', student)
    for y in (TEACHER, STUDENT):
        side = ERROR + (-30 if y < ERROR else 30)
        parts.append(arrow((62, side), (62, y), (LEFT - BOX / 2 - 4, y)))
    x = LEFT + 2 * STEP
    parts += [
        arrow((x, TEACHER + 24), (x, ERROR - 25)),
        arrow((x, STUDENT - 24), (x, ERROR + 25)),
        box(x, ERROR, BOX, 42, 'error', 'output error'),
        text(x - 206, ERROR - 10, 'Learn: each weight up or down,', 'small'),
        text(x - 206, ERROR + 10, 'every scale; validate; freeze', 'small'),
        text(x + 172, ERROR - 10, 'Weighted by the', 'small'),
        text(x + 172, ERROR + 10, 'Fisher information', 'small'),
    ]
    right = LEFT + 3 * STEP + BOX / 2
    parts += [
        arrow((right, STUDENT), (right + 54, STUDENT)),
        box(right + 122, STUDENT, 128, 62, 'done', 'quantized.pth', 'ONNX'),
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 380" '
        'role="img" aria-label="Calibration images pass through the float '
        'teacher and the quantized student; one unit after the other learns '
        'until its output is that of the teacher">\n'
        f'<style>{STYLE}</style>\n'
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" '
        'markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        '<polygon points="0,0 10,5 0,10" fill="#374151"/></marker></defs>\n'
        '<rect class="card" x="1" y="1" width="958" height="378" rx="14"/>\n'
        + '\n'.join(parts)
        + '\n</svg>\n'
    )


if __name__ == '__main__':
    Path(__file__).with_name('overview.svg').write_text(
        draw(), encoding='utf-8'
    )
