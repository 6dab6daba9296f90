"""Chooses what each of a network's outputs means by its form."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
from mmengine.dist import broadcast_object_list
from torch import Tensor, nn

from ..graph import Recording, record
from ..registry import TASK_UTILS
from .gradients import real_outputs
from .likelihood import Bernoulli, Gaussian, Likelihood

#: Odds that no network gives for half of its images, as a logarithm: what
#: is further apart is no logit but a value.
NO_LOGIT = 40.0


class Form(NamedTuple):
    """What one output is.

    Attributes:
        kind (str): ``classes``, ``chance`` or ``value``.
        axis (int): That of the classes.
        sure (bool): Whether these are probabilities in place of logits.
    """

    kind: str
    axis: int = -1
    sure: bool = False


@TASK_UTILS.register_module()
class FromOutput(Likelihood):
    """Each output by its form, as the float network gives it for images.

    - Two channels or more are logits of classes. Their axis is the last of
      N x C, axis 1 of maps, N x C x H x W, and that of the last layer's
      channels where a Linear puts out maps or sequences, or a convolution
      sequences; failing that, the last of N x L x C.
    - One channel, and N values alone, are the logit of one chance.
    - What adds up to 1 over the classes is a softmax, and what lies between
      0 and 1 a sigmoid: their logarithms take the place of logits.
    - An image like the input, single numbers, and what is too far apart to
      be logits are values, of unit variance.

    A network that regresses other values is not told from one that
    classifies: name ``Gaussian`` for it. Outputs count by their sum.

    Args:
        classes (dict): Likelihood of classes; its temperature is that of
            single chances, too.
    """

    def __init__(self, classes: Optional[dict] = None) -> None:
        self.classes = dict(classes or dict(type='Categorical'))
        self.chance = Bernoulli(self.classes.get('temperature', 1.0))
        self.value = Gaussian()
        self.forms: list[Form] = []
        TASK_UTILS.build(self.classes)  # What is wrong in it shows here.

    @torch.no_grad()
    def see(
        self, teacher: nn.Module, images: Tensor, outputs: list[Tensor]
    ) -> None:
        """Choose by some images, the same in all processes."""
        layers: list[Optional[nn.Module]] = [None] * len(outputs)
        if any(out.dim() > 2 for out in outputs):
            layers = _last_layers(teacher, images[:1], len(outputs))
        found: list[Any] = [
            [_form(*pair, images) for pair in zip(outputs, layers)]
        ]
        broadcast_object_list(found)
        (self.forms,) = found

    def __call__(
        self, outputs: list[Tensor], generator: torch.Generator
    ) -> Tensor:
        """The losses of all outputs, summed over images."""
        loss = outputs[0].new_zeros(())
        for out, form in zip(outputs, self._forms(outputs)):
            likelihood = self._likelihood(form)
            loss = loss + likelihood([_logits(out, form)], generator)
        return loss

    def divergence(self, outputs: list[Tensor], goals: list[Tensor]) -> Tensor:
        """That of all outputs, but those whose size the network chooses."""
        parts = [
            self._likelihood(form).divergence(
                [_logits(out, form)], [_logits(goal, form)]
            )
            for out, goal, form in zip(outputs, goals, self._forms(goals))
            if out.shape == goal.shape
        ]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def _forms(self, outputs: list[Tensor]) -> list[Form]:
        """Those that were seen, unless this is another number of outputs."""
        if len(self.forms) == len(outputs):
            return self.forms
        return [_form(out.detach()) for out in outputs]

    def _likelihood(self, form: Form) -> Likelihood:
        if form.kind == 'classes':
            return TASK_UTILS.build(dict(self.classes, axis=form.axis))
        return self.chance if form.kind == 'chance' else self.value

    def __str__(self) -> str:
        names = [
            str(self._likelihood(form)) + ' of probabilities' * form.sure
            for form in self.forms
        ]
        return ' and '.join(dict.fromkeys(names)) or 'no real output'


def _form(
    out: Tensor,
    layer: Optional[nn.Module] = None,
    images: Optional[Tensor] = None,
) -> Form:
    """What one output is.

    Args:
        out (Tensor): Real and not empty.
        layer (nn.Module, optional): The last layer before it.
        images (Tensor, optional): What it was computed from.
    """
    if not out.dim() or _looks_like(out, images):
        return Form('value')
    axis = _class_axis(out, layer)
    single = out.dim() == 1 or out.shape[axis] == 1
    if single:
        apart = out.abs().median()
    else:
        sums = out.sum(axis)
        if out.min() >= 0 and torch.allclose(sums, sums.new_ones(()), 0, 1e-3):
            return Form('classes', axis, True)
        apart = out.topk(2, axis).values.diff(dim=axis).abs().median()
    if out.min() > 0 and out.max() <= 1:
        return Form('chance', sure=True)
    if not apart < NO_LOGIT:
        return Form('value')
    return Form('chance') if single else Form('classes', axis)


def _class_axis(out: Tensor, layer: Optional[nn.Module]) -> int:
    """The axis of the classes: -1 for the last."""
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


def _looks_like(out: Tensor, images: Optional[Tensor]) -> bool:
    """Whether an output is an image much like the input."""
    if images is None or out.shape != images.shape or out.dim() < 3:
        return False
    error = (out - images).square().mean()
    return bool(error < 0.25 * images.var(unbiased=False))


def _logits(out: Tensor, form: Form) -> Tensor:
    """An output as its likelihood takes it, N x ..."""
    if out.dim() < 2:
        out = out.reshape(-1, 1)
    if not form.sure:
        return out
    if form.kind == 'classes':
        return out.clamp(min=1e-12).log()
    return out.logit(1e-6)


def _last_layers(
    network: nn.Module, image: Tensor, count: int
) -> list[Optional[nn.Module]]:
    """The last layer before each output that is real and not empty."""
    kept: list[Tensor] = []
    hook = network.register_forward_hook(
        lambda module, args, out: kept.extend(real_outputs(out))
    )
    try:
        recording = record(network, image)
    finally:
        hook.remove()
    found = [_layer_before(recording, out) for out in kept]
    return found if len(found) == count else [None] * count


def _layer_before(recording: Recording, out: Tensor) -> Optional[nn.Module]:
    layers = {
        value.tensor: call.module
        for call in recording.calls
        if hasattr(call.module, 'out_features')
        or hasattr(call.module, 'out_channels')
        for value in call.outputs
    }
    made = {
        value.tensor: [x.tensor for x in step.taken]
        for step in recording.steps
        for value in step.made
    }
    nearest, seen = [out._cdata], {out._cdata}
    for tensor in nearest:  # It grows.
        if tensor in layers:
            return layers[tensor]
        before = [x for x in made.get(tensor, ()) if x not in seen]
        seen.update(before)
        nearest += before
    return None
