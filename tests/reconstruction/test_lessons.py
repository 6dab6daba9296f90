from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.reconstruction import CutMix, Flip, Lessons, Rows, Shift


class Teacher(nn.Module):
    """Says a number an image, or as many as it has pixels."""

    def __init__(self, pixels=False):
        super().__init__()
        self.pixels = pixels
        self.asked = 0

    def forward(self, images):
        self.asked += len(images)
        return images if self.pixels else images.flatten(1).sum(1)


@pytest.fixture
def lessons():
    def build(teacher, seed=0):
        batch = torch.rand(8, 3, 16, 16)
        torch.manual_seed(0)
        batches = torch.randint(8, (5, 4))
        augment = [Flip(), Shift(), CutMix()]
        return Lessons(
            teacher, Rows([batch], [8]), list(batches), augment, seed
        )

    torch.manual_seed(0)
    return build


def whole(lessons, k, size=4):
    images, answers = zip(*lessons.parts(k, size))
    return torch.cat(images), torch.cat([x for (x,) in answers])


@pytest.mark.parametrize('pixels', [False, True])
@pytest.mark.parametrize('size', [1, 3, 4])
def test_a_batch_comes_again(pixels, size, lessons):
    taught = lessons(Teacher(pixels))
    for k in range(len(taught)):
        images, answers = whole(taught, k, size)
        again, answers_again = whole(taught, k, size)
        assert images.shape == (4, 3, 16, 16)
        torch.testing.assert_close(answers, taught.teacher(images))
        assert torch.equal(images, again)
        assert torch.equal(answers, answers_again)


def test_batches_and_seeds_vary(lessons):
    first, other = lessons(Teacher()), lessons(Teacher(), seed=1)
    seen = [whole(x, k)[0] for x in (first, other) for k in range(5)]
    for i, a in enumerate(seen):
        assert not any(torch.equal(a, b) for b in seen[i + 1 :])


def test_the_float_network_is_asked_once(lessons):
    teacher = Teacher()
    taught = lessons(teacher)
    for _ in range(3):
        for k in range(len(taught)):
            whole(taught, k, 2)
    assert teacher.asked == 5 * 4


def test_large_answers_are_not_held(lessons):
    taught = lessons(Teacher(pixels=True))
    for _ in range(2):
        for k in range(len(taught)):
            whole(taught, k)
    assert taught.teacher.asked == 2 * 5 * 4 and not taught.answers
