from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import dequantize, quantize
from mmrazor_brecq.quantizers import LpChoice, LpObserver, MinMaxObserver
from mmrazor_brecq.quantizers.observers import Grid
from mmrazor_brecq.registry import TASK_UTILS

GRIDS = [
    Grid(bits, symmetric, signed)
    for bits in (2, 4, 8)
    for symmetric, signed in ((False, False), (False, True), (True, True))
]
each_grid = pytest.mark.parametrize('grid', GRIDS, ids=str)
each_observer = pytest.mark.parametrize(
    'observer', [MinMaxObserver(), LpObserver()], ids=['minmax', 'lp']
)


@pytest.fixture
def rows(generator):
    """Rows of normal, uniform, positive, shifted and outlying values."""
    x = torch.randn(6, 200, generator=generator)
    x[1] = torch.rand(200, generator=generator)
    x[2].abs_()
    x[3] = x[3] * 0.1 + 4
    x[4, 7] = 30
    x[5] *= 1e-6
    return x


def lp_error(x, y, p):
    return (x - y).abs().pow(p).mean(-1)


def on_grid(x, scale, zero_point, grid):
    scale, zero_point = scale[:, None], zero_point[:, None]
    q = quantize(x, scale, zero_point, *grid.range)
    return dequantize(q, scale, zero_point)


def check(scale, zero_point, grid):
    low, high = grid.range
    assert scale.isfinite().all() and (scale > 0).all()
    assert ((zero_point >= low) & (zero_point <= high)).all()
    assert torch.equal(zero_point, zero_point.round())
    if grid.symmetric:
        assert (zero_point == 0).all()


@each_grid
@each_observer
def test_scales_are_positive_and_zero_points_on_the_grid(observer, grid, rows):
    scale, zero_point = observer(rows, grid)

    assert scale.shape == zero_point.shape == (6,)
    check(scale, zero_point, grid)


@each_grid
def test_min_max_covers_all_values_and_zero(grid, rows):
    scale, zero_point = MinMaxObserver()(rows, grid)

    error = (on_grid(rows, scale, zero_point, grid) - rows).abs()
    # The zero point is rounded, which moves the range by half a scale.
    assert (error.amax(1) <= scale * 1.001).all()
    if grid.symmetric:
        assert (error.amax(1) <= scale * 0.501).all()


@each_grid
@pytest.mark.parametrize('p', [1.0, 2.4])
def test_the_search_is_never_worse_than_min_max(grid, p, rows):
    errors = [
        lp_error(on_grid(rows, *observer(rows, grid), grid), rows, p)
        for observer in (LpObserver(p=p), MinMaxObserver())
    ]

    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_the_search_clips_outliers(rows):
    grid = Grid(4, False, True)
    outlier = rows[4:5]
    scale, _ = LpObserver(p=1.0)(outlier, grid)

    assert scale < MinMaxObserver()(outlier, grid)[0] / 2


@pytest.mark.parametrize('bits', [2, 4])
def test_the_search_comes_close_to_the_best_of_all_grids(bits, rows):
    """Compare it with all combinations of both ends of the range."""
    grid = Grid(bits, False, False)
    rows = torch.cat([rows, torch.nn.functional.silu(rows[:2] * 3)])
    low, high = rows.amin(1), rows.amax(1)
    factors = torch.linspace(1, 1 / 20, 20)
    best = torch.stack(
        [
            lp_error(
                on_grid(rows, *grid.fit(low * a, high * b), grid), rows, 2.4
            )
            for a in factors
            for b in factors
        ]
    ).amin(0)
    found = on_grid(rows, *LpObserver()(rows, grid), grid)

    assert (lp_error(found, rows, 2.4) <= 1.06 * best).all()


@each_observer
@each_grid
def test_rows_do_not_influence_each_other(observer, grid, rows):
    together = observer(rows, grid)
    alone = [observer(row[None], grid) for row in rows]

    for i in range(2):
        torch.testing.assert_close(
            together[i], torch.cat([found[i] for found in alone])
        )


@pytest.mark.parametrize('max_elements', [1, 700, 10_000])
def test_a_bound_on_memory_does_not_change_the_result(max_elements, rows):
    grid = Grid(3, False, True)
    free = LpObserver()(rows, grid)
    bound = LpObserver(max_elements=max_elements)(rows, grid)

    torch.testing.assert_close(bound, free)


@each_observer
@each_grid
def test_the_scale_grows_with_the_values(observer, grid, rows):
    """A factor of two is exact in floating point."""
    scale, zero_point = observer(rows, grid)
    twice, same = observer(rows * 2, grid)

    torch.testing.assert_close(twice, scale * 2)
    torch.testing.assert_close(same, zero_point)


@each_observer
@each_grid
def test_rows_of_zeros_stay_zero(observer, grid, rows):
    rows[2] = 0
    scale, zero_point = observer(rows, grid)

    check(scale, zero_point, grid)
    assert scale[2] == 1
    assert (on_grid(rows, scale, zero_point, grid)[2] == 0).all()


@each_observer
@each_grid
@pytest.mark.parametrize('size', [1e-44, 1e-33, 1e-20])
def test_rows_of_tiny_values_give_finite_values(observer, grid, size):
    rows = torch.tensor([[size, -size, size / 2]])
    scale, zero_point = observer(rows, grid)

    check(scale, zero_point, grid)
    assert on_grid(rows, scale, zero_point, grid).isfinite().all()


@each_observer
@each_grid
def test_a_row_of_one_value_is_exact(observer, grid):
    rows = torch.tensor([[3.7], [-2.9]])
    found = on_grid(rows, *observer(rows, grid), grid)

    torch.testing.assert_close(found, rows, rtol=1e-3, atol=0)


@pytest.mark.parametrize('bits', [1, 9, 0, -4, 3.5, None])
def test_a_bit_width_out_of_range_is_refused(bits):
    with pytest.raises(ValueError, match=f'bits={bits}.*2 to 8.*`bits`'):
        Grid(bits, False, True)


@pytest.mark.parametrize('grid', GRIDS, ids=str)
def test_a_grid_covers_the_given_range(grid):
    low, high = torch.tensor([-1.0, 0.5, -3]), torch.tensor([2.0, 0.7, -1])
    scale, zero_point = grid.fit(low, high)

    qmin, qmax = grid.range
    slack = scale * 0.501
    assert ((qmax - zero_point) * scale + slack >= high).all()
    assert ((qmin - zero_point) * scale - slack <= low).all()
    # At least one end is exact, so no integers are wasted.
    reach = torch.stack(
        [(qmax - zero_point) * scale, (qmin - zero_point) * scale]
    )
    ends = torch.stack([high.clamp(min=0), low.clamp(max=0)])
    assert ((reach - ends).abs().amin(0) <= slack + scale).all()


def test_a_choice_of_exponents_begins_with_its_first(rows):
    grid, choice = GRIDS[0], LpChoice((4.0, 1.0))
    assert [observer.p for observer in choice.choices] == [4.0, 1.0]
    for found, expected in zip(
        choice(rows, grid), LpObserver(4.0)(rows, grid)
    ):
        assert torch.equal(found, expected)
    assert [*LpObserver().choices][0].p == 2.4
    with pytest.raises(ValueError, match='exponents.*one or more'):
        LpChoice(())
    with pytest.raises(ValueError, match='exponents'):
        TASK_UTILS.build(dict(type='LpChoice', exponents=(0.0,)))
