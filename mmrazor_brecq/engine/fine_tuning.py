"""Fine-tuning of a quantized network by mmengine's own runner."""

from __future__ import annotations

import copy
from typing import Any, Callable, Optional, Union

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..algorithms import BRECQ
from ..algorithms.brecq import INPUT_FORM
from ..checkpoint import load_float, load_quantized
from ..graph import copy_network, example_of
from ..objectives import FromOutput
from ..reconstruction import NonFinite, close, float_outputs, reopen
from ..registry import MODELS
from .launch import bare_model

#: Loss of outputs and labels, for networks that have none of their own.
Loss = Callable[[Any, Any], Tensor]


@MODELS.register_module()
class FineTuning(BaseModel):
    """A quantized network whose weights and scales learn together.

    Rounding passes gradients straight through (Bengio et al., 2013), and
    scales learn as in LSQ (Esser et al., ICLR 2020). The network stays in
    evaluation mode: its batch norms are folded, and dropout is off.

    Attributes:
        meta (dict): The metadata of the quantized checkpoint.

    Args:
        quantized (dict | BRECQ): A quantized model, or the config of one,
            whose weights are in ``checkpoint``.
        checkpoint (str, optional): The quantized checkpoint.
        teacher (str | nn.Module, optional): The float checkpoint, or the
            folded float network that ``BRECQ.prepare`` returned. The
            divergence from its outputs is part of the loss.
        labels (bool): Whether labels are part of the loss.
        loss (callable, optional): Loss of the outputs and the labels of a
            batch, for an architecture that is not of mmengine.
        trust (bool): Whether loading the float checkpoint may run code.

    Raises:
        ValueError: If there is neither a teacher nor a use of labels, or a
            checkpoint is of another network.

    Example:
        >>> model = FineTuning(brecq, teacher=teacher, labels=False)
        >>> model.train_step(batch, optim_wrapper)
        >>> model.close()  # Integers again.
    """

    def __init__(
        self,
        quantized: Union[dict, BRECQ],
        checkpoint: Optional[str] = None,
        teacher: Union[str, nn.Module, None] = None,
        labels: bool = True,
        loss: Optional[Loss] = None,
        trust: bool = False,
    ) -> None:
        if teacher is None and not labels:
            raise ValueError(
                'labels=False and teacher=None, expected one to learn from: '
                'give the float checkpoint (--teacher, `teacher=`) or use '
                'labels'
            )
        super().__init__()
        self.meta: dict[str, Any] = {}
        model: Any = quantized
        if isinstance(quantized, dict):
            model = MMENGINE_MODELS.build(quantized).eval()
        if checkpoint is not None:
            self.meta = load_quantized(model, checkpoint)
        if isinstance(teacher, str):
            # The config builds it, so there is one.
            other = MMENGINE_MODELS.build(quantized)
            load_float(other, teacher, trust)
            teacher = folded(model, other.architecture)
        self.quantized: BRECQ = model
        self.data_preprocessor = model.data_preprocessor
        self.labels = labels
        self.loss = loss
        self.likelihood = FromOutput(dict(type='Categorical', temperature=4.0))
        #: In a tuple, since it belongs to no checkpoint.
        self.teacher = () if teacher is None else (teacher.eval(),)
        reopen(model.architecture, teacher)

    def init_weights(self) -> None:
        """Keep the trained weights, which mmengine's runner would draw."""

    def train(self, mode: bool = True) -> FineTuning:
        """Set the mode of the wrapper alone."""
        super().train(mode)
        self.quantized.eval()
        return self

    def forward(
        self,
        inputs: Tensor,
        data_samples: Any = None,
        mode: str = 'tensor',
    ) -> Any:
        """Run the quantized network, or return its losses.

        Args:
            inputs (Tensor): N x ... preprocessed inputs.
            data_samples (list | Tensor, optional): Labels, as the
                architecture or ``loss`` takes them.
            mode (str): ``loss``, ``predict`` or ``tensor``.

        Raises:
            ValueError: If labels are to be used, and there are none.
        """
        if mode != 'loss':
            return self.quantized(inputs, data_samples, mode)
        losses: dict[str, Any] = {}
        if self.labels:
            losses.update(self._label_losses(inputs, data_samples))
        for teacher in self.teacher:
            losses['loss_teacher'] = self._distance(teacher, inputs)
        return losses

    def close(self) -> None:
        """Replace the learned weights by integers."""
        close(self.quantized.architecture)

    def _label_losses(self, inputs: Tensor, data_samples: Any) -> dict:
        if data_samples is None:
            raise ValueError(
                'The batches have no labels: learn from the float network '
                'alone, with --teacher FLOAT.pth --no-labels '
                '(`teacher=..., labels=False`)'
            )
        if self.loss is not None:
            outputs = self.quantized(inputs)
            return dict(loss_labels=self.loss(outputs, data_samples))
        return self.quantized(inputs, data_samples, 'loss')

    def _distance(self, teacher: nn.Module, inputs: Tensor) -> Tensor:
        """Return the divergence from the float network's outputs."""
        with torch.no_grad():
            goals = float_outputs(teacher.to(inputs.device), inputs)
            if not self.likelihood.forms:
                self.likelihood.see(teacher, inputs, goals)
        outputs = float_outputs(self.quantized.architecture, inputs)
        return self.likelihood.divergence(outputs, goals)


class KeepBest(Hook):
    """Hook that ends a training which diverges, with the best state so far.

    Args:
        metric (str, optional): Name of the metric by which a state is the
            best, larger being better; by default the last one is.
    """

    priority = 'VERY_LOW'

    def __init__(self, metric: Optional[str] = None) -> None:
        self.metric = metric
        self.best = -float('inf')
        self.state: dict[str, Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Keep the state that training starts from."""
        self._keep(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Optional[dict] = None,
    ) -> None:
        """Stop if a loss is not finite.

        Raises:
            NonFinite: Names the layer, and the cure.
        """
        losses = (outputs or {}).values()
        if all(torch.as_tensor(x).isfinite().all() for x in losses):
            return
        model = _bare(runner)
        wrong = [
            name.removeprefix('quantized.architecture.')
            for name, value in model.named_parameters()
            if value.is_floating_point() and not value.isfinite().all()
        ]
        model.load_state_dict(self.state)
        where = f', first in {wrong[0]}' if wrong else ''
        raise NonFinite(
            f'NaN or infinity in iteration {runner.iter}{where}: lower '
            'optim_wrapper.optimizer.lr'
        )

    def after_val_epoch(
        self, runner: Runner, metrics: Optional[dict[str, float]] = None
    ) -> None:
        """Keep the state if it is the best."""
        score = (metrics or {}).get(self.metric or '')
        if score is None or score >= self.best:
            self.best = self.best if score is None else score
            self._keep(runner)

    def _keep(self, runner: Runner) -> None:
        self.state = copy.deepcopy(_bare(runner).state_dict())


def train(runner: Runner, metric: Optional[str] = None) -> FineTuning:
    """Train a model, and return it with integers.

    Args:
        runner (Runner): A runner whose model is :class:`FineTuning`.
        metric (str, optional): As for :class:`KeepBest`.

    Returns:
        FineTuning: The model after the last iteration. If training
        diverged, that is said, and it has its best state before.
    """
    runner.register_hook(KeepBest(metric))
    try:
        runner.train()
    except NonFinite as error:
        print_log(f'{error}. The best state before is kept', 'current', 40)
    model = _bare(runner)
    model.close()
    return model


def _bare(runner: Runner) -> FineTuning:
    """Return the model of a runner, without a wrapper."""
    model: Any = bare_model(runner)
    return model


def folded(model: BRECQ, network: nn.Module) -> nn.Module:
    """Return the float network, folded as a quantized one was.

    Args:
        model (BRECQ): The quantized network.
        network (nn.Module): The float network; it is not changed.
    """
    other = BRECQ(
        copy_network(network),
        quantization=model.scheme.to_dict(),
        partition=model.partition_cfg,
    ).eval()
    device = next(other.parameters()).device
    form = getattr(model, INPUT_FORM, None)
    example = example_of(model.input_shape, form, device)
    return other.prepare(example, model.architecture.state_dict())
