"""A likelihood that is chosen by the form of the network's outputs."""

from __future__ import annotations

from typing import Literal, NamedTuple, Optional

import torch
from mmengine.dist import broadcast_object_list
from torch import Tensor, nn

from ..graph import Inputs, images_of
from ..registry import TASK_UTILS
from .dense_head import chance_of_object, value_maps
from .last_layers import last_layers
from .likelihood import Bernoulli, Gaussian, Likelihood
from .region_head import chance_of_box, values_of_regions

#: A logit, or the distance between the two largest logits, that no network
#: has for half of its images. Larger numbers are values, not logits.
MAX_LOGIT = 40.0


class Form(NamedTuple):
    """Meaning of one output.

    Attributes:
        kind (str): ``'classes'``, ``'event'`` for one probability an
            element, or ``'value'``.
        axis (int): Axis of the classes.
        probabilities (bool): Whether it has probabilities, not logits.
        chances (tuple[int]): Of a value of a detector's head, the outputs
            that tell the chance that it matters.
    """

    kind: Literal['classes', 'event', 'value']
    axis: int = -1
    probabilities: bool = False
    chances: tuple[int, ...] = ()


@TASK_UTILS.register_module()
class FromOutput(Likelihood):
    """Likelihood of each output, chosen by its form for some images.

    - Two channels or more are logits of classes. Their axis is the last of
      N x C and axis 1 of N x C x H x W. If a Linear computes a map or a
      sequence, or a convolution a sequence, it is the axis that is as long
      as that layer has output channels. If there is none, it is the last of
      N x L x C.
    - One channel, and N values alone, are logits of one event.
    - Numbers that sum to 1 over the classes are a softmax, and numbers
      between 0 and 1 a sigmoid. Their logarithms and logits are used.
    - An image like the input, a scalar, and numbers too large for logits are
      values of unit variance.
    - Of a dense head, such as that of a detector (:func:`value_maps`), maps
      whose channels are all below 0 at most positions are logits of events;
      the others are values, whose error counts as likely as an object is at
      that position.
    - Of a second stage (:func:`values_of_regions`), which says something of
      regions, boxes count as likely as their class is, and masks are logits
      of events.

    A network that regresses cannot always be told from one that classifies:
    name ``Gaussian`` for it. The losses of several outputs are added.

    Args:
        classes (dict): Config of the likelihood of classes; by default
            ``dict(type='Categorical')``. Its temperature is also that of
            single events.

    Raises:
        ValueError: If the config is wrong.
    """

    def __init__(self, classes: Optional[dict] = None) -> None:
        self.classes = dict(classes or dict(type='Categorical'))
        self.event = Bernoulli(self.classes.get('temperature', 1.0))
        self.value = Gaussian()
        self.forms: list[Form] = []
        TASK_UTILS.build(self.classes)  # Report errors of the config now.

    @torch.no_grad()
    def see(
        self, teacher: nn.Module, images: Inputs, outputs: list[Tensor]
    ) -> None:
        """Choose the forms by some images, the same in all processes."""
        layers: list[Optional[nn.Module]] = [None] * len(outputs)
        if any(out.dim() > 2 for out in outputs):
            layers = last_layers(teacher, images[:1], len(outputs))
        shown = images_of(images)
        forms = [_form(*pair, shown) for pair in zip(outputs, layers)]
        for i, chances in value_maps(outputs).items():
            forms[i] = Form('value', chances=chances)
            for k in chances:
                forms[k] = Form('event')
        boxes, masks = values_of_regions(outputs, len(images))
        for i, k in boxes.items():
            forms[i], forms[k] = Form('value', chances=(k,)), Form('classes')
        for i in masks:
            forms[i] = Form('event')
        message = [forms]
        broadcast_object_list(message)
        (self.forms,) = message

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return the sum of the losses of all outputs."""
        loss = outputs[0].new_zeros(())
        for out, form in zip(outputs, self._forms(outputs)):
            likelihood = self._likelihood(form)
            out = _weighted(out, outputs, form)
            loss = loss + likelihood([out], generator)
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """Return the sum of the divergences of all outputs.

        An output counts only if both have one shape: some networks choose
        the size of an output by its content.
        """
        parts = []
        for out, goal, form in zip(outputs, goals, self._forms(goals)):
            if out.shape != goal.shape:
                continue
            parts.append(
                self._likelihood(form).divergence(
                    [_weighted(out, goals, form)],
                    [_weighted(goal, goals, form)],
                )
            )
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def _forms(self, outputs: list[Tensor]) -> list[Form]:
        """Return the chosen forms, or new ones if the outputs differ."""
        if len(self.forms) == len(outputs):
            return self.forms
        return [_form(out.detach()) for out in outputs]

    def _likelihood(self, form: Form) -> Likelihood:
        if form.kind == 'classes':
            return TASK_UTILS.build(dict(self.classes, axis=form.axis))
        return self.event if form.kind == 'event' else self.value

    def __str__(self) -> str:
        names = []
        for form in self.forms:
            name = str(self._likelihood(form))
            if form.probabilities:
                name += ' of probabilities'
            if form.chances:
                name += ' where an object is likely'
            names.append(name)
        return ' and '.join(dict.fromkeys(names)) or 'no real output'


def _form(
    out: Tensor,
    layer: Optional[nn.Module] = None,
    images: Optional[Tensor] = None,
) -> Form:
    """Return the meaning of one output.

    Args:
        out (Tensor): The output, real and not empty.
        layer (nn.Module, optional): The last layer before it.
        images (Tensor, optional): The images that it was computed from.
    """
    if not out.dim() or _is_like(out, images):
        return Form('value')
    axis = _class_axis(out, layer)
    single = out.dim() == 1 or out.shape[axis] == 1
    if single:
        size = out.abs().median()
    else:
        sums = out.sum(axis)
        if out.min() >= 0 and torch.allclose(sums, sums.new_ones(()), 0, 1e-3):
            return Form('classes', axis, probabilities=True)
        size = out.topk(2, axis).values.diff(dim=axis).abs().median()
    if out.min() > 0 and out.max() <= 1:
        return Form('event', probabilities=True)
    if not size < MAX_LOGIT:
        return Form('value')
    return Form('event') if single else Form('classes', axis)


def _class_axis(out: Tensor, layer: Optional[nn.Module]) -> int:
    """Return the axis of the classes, -1 for the last."""
    if out.dim() < 3:
        return -1
    channels = getattr(layer, 'out_channels', None)
    order = [1, -1]
    if channels is None:
        channels, order = getattr(layer, 'out_features', None), [-1, 1]
    for axis in order:
        if out.shape[axis] == channels:
            return axis
    return 1 if out.dim() > 3 else -1


def _is_like(out: Tensor, images: Optional[Tensor]) -> bool:
    """Return whether an output is an image similar to the input."""
    if images is None or out.shape != images.shape or out.dim() < 3:
        return False
    error = (out - images).square().mean()
    return bool(error < 0.25 * images.var(unbiased=False))


def _logits(out: Tensor, form: Form) -> Tensor:
    """Return an output as its likelihood expects it, N x ..."""
    if out.dim() < 2:
        out = out.reshape(-1, 1)
    if not form.probabilities:
        return out
    if form.kind == 'classes':
        return out.clamp(min=1e-12).log()
    return out.logit(1e-6)


def _weighted(out: Tensor, outputs: list[Tensor], form: Form) -> Tensor:
    """Return an output as its likelihood expects it, scaled by its weight.

    Args:
        out (Tensor): The output.
        outputs (list[Tensor]): All outputs of the network that the weight is
            taken from.
        form (Form): Its meaning.
    """
    out = _logits(out, form)
    if not form.chances:
        return out
    logits = [outputs[i] for i in form.chances]
    chance = (
        chance_of_object(logits)
        if out.dim() > 2
        else chance_of_box(logits[0], out.shape[1])
    )
    return out * chance.sqrt()  # Its error is squared.
