"""mmcv-lite gets the two operators that detectors need, on request only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

HEAD = """
import sys, torch, torchvision
"""
STAND_IN = HEAD + 'import mmrazor_brecq.mmcv_ext\n'

BOXES = """
torch.manual_seed(0)
start = torch.rand(40, 2) * 5
boxes = torch.cat([start, start + 3 + torch.rand(40, 2) * 12], 1)
scores = torch.rand(40)


def greedy(boxes, scores, threshold, offset):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        for k in kept:
            low = torch.maximum(boxes[i, :2], boxes[k, :2])
            high = torch.minimum(boxes[i, 2:], boxes[k, 2:])
            both = (high - low + offset).clamp(min=0).prod()
            areas = [(boxes[j, 2:] - boxes[j, :2] + offset).prod()
                     for j in (i, k)]
            if both / (sum(areas) - both) > threshold:
                break
        else:
            kept.append(i)
    return kept
"""


def run(code, path=(), cwd=None):
    """Run code in a process of its own, for modules stay imported."""
    return subprocess.run(
        [sys.executable, '-c', code],
        env=dict(
            os.environ,
            PYTHONPATH=os.pathsep.join([*map(str, path), str(ROOT)]),
        ),
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def check(code, **kwargs):
    done = run(code, **kwargs)
    assert done.returncode == 0, done.stderr


def test_two_operators_have_the_values_of_mmcv():
    """All in one process: an import takes seconds."""
    check(
        STAND_IN
        + BOXES
        + """
from mmcv.ops import RoIAlign, batched_nms, nms

for offset in (0, 1):
    for threshold in (0.1, 0.3, 0.7):
        found = nms(boxes, scores, threshold, offset=offset)[1].tolist()
        assert found == greedy(boxes, scores, threshold, offset)
        assert 0 < len(found) < 40
assert greedy(boxes, scores, 0.3, 0) != greedy(boxes, scores, 0.3, 1)
assert not len(nms(boxes[:0], scores[:0], 0.5)[1])

same = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 9], [1, 0, 9, 9]])
chances, classes = torch.tensor([.5, .6, .4]), torch.tensor([0, 1, 0])
cfg = dict(type='nms', iou_threshold=0.5)
assert batched_nms(same, chances, classes, cfg)[1].tolist() == [1, 0]

for aligned in (False, True):
    maps = torch.randn(2, 3, 16, 20, requires_grad=True)
    rois = torch.tensor([[0, 1.5, 2, 30, 25], [1, 0, 0, 39, 31.]])
    out = RoIAlign((4, 5), 0.5, 2, 'avg', aligned)(maps, rois)
    goal = torchvision.ops.roi_align(maps, rois, (4, 5), 0.5, 2, aligned)
    assert out.shape == (2, 3, 4, 5) and torch.equal(out, goal)
    weight = torch.randn_like(out)
    found, = torch.autograd.grad((out * weight).sum(), maps)
    wanted, = torch.autograd.grad((goal * weight).sum(), maps)
    assert wanted.abs().max() > 0.1 and torch.allclose(found, wanted)
"""
    )


def test_it_may_come_after_what_imports_mmcv():
    check(
        HEAD
        + """
import mmcv.cnn.bricks.transformer
import mmrazor_brecq.mmcv_ext
from mmcv.cnn.bricks.transformer import MultiScaleDeformableAttention
from mmcv.ops import MultiScaleDeformableAttention as same
assert MultiScaleDeformableAttention is same
"""
    )


def test_other_operators_say_what_to_build():
    check(
        STAND_IN
        + """
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign, soft_nms

ones, roi = torch.ones, torch.tensor([[0., 0, 0, 2, 2]])
pool = RoIAlign(2, pool_mode='max')
calls = {
    'softnms': lambda: soft_nms(ones(1, 4), ones(1)),
    "roi_align with pool_mode='max'": lambda: pool(ones(1, 1, 4, 4), roi),
    'modulated_deform_conv_forward': lambda: (
        ModulatedDeformConv2dPack(2, 2, 3)(ones(1, 2, 5, 5))
    ),
}
for name, call in calls.items():
    try:
        call()
    except NotImplementedError as error:
        assert str(error).startswith(f'{name} of mmcv.ops'), error
        assert 'build mmcv with ops' in str(error)
    else:
        raise AssertionError(name)
"""
    )


def test_nothing_stands_in_without_being_asked():
    check(
        HEAD
        + """
import mmrazor_brecq
from mmrazor_brecq import quantize
assert 'mmcv._ext' not in sys.modules
"""
    )


def test_a_config_asks_by_custom_imports(tmp_path):
    (tmp_path / 'config.py').write_text(
        "custom_imports = dict(imports=['mmrazor_brecq.mmcv_ext'])\n"
    )
    check(
        """
from mmengine import Config
Config.fromfile('config.py')
import mmcv.ops, importlib.util
assert importlib.util.find_spec('mmcv._ext')
""",
        cwd=tmp_path,
    )


def test_steps_aside_where_mmcv_is_compiled(tmp_path):
    """A package of that name stands for a mmcv that was built."""
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').write_text('')
    (tmp_path / 'mmcv/_ext.py').write_text("nms = 'compiled'\n")
    code = STAND_IN + "import mmcv._ext\nassert mmcv._ext.nms == 'compiled'\n"
    check(code, path=[tmp_path])


def test_names_the_extra_where_there_is_no_mmcv():
    code = HEAD + "import mmrazor_brecq\nsys.modules['mmcv'] = None\n"
    done = run(code + 'import mmrazor_brecq.mmcv_ext')
    last = done.stderr.strip().split('\n')[-1]
    assert last.startswith('ImportError')
    assert "pip install 'mmrazor_brecq[detection]'" in last
