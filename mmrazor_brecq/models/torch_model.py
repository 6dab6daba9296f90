"""Any torch network as a model of OpenMMLab, through a config."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.utils import get_object_from_string
from torch import Tensor, nn, stack

from ..registry import MODELS, TASK_UTILS


@TASK_UTILS.register_module()
class Classification:
    """What the outputs mean: one class of several, by N x C logits."""

    def loss(self, logits: Tensor, samples: list) -> dict[str, Tensor]:
        """Return the cross-entropy.

        Args:
            logits (Tensor): N x C.
            samples (list): N data samples with ``gt_label``.
        """
        labels = stack([s.gt_label.label.reshape(()) for s in samples])
        return dict(loss=F.cross_entropy(logits, labels.to(logits.device)))

    def predict(self, logits: Tensor, samples: list) -> list:
        """Return the samples with ``pred_score`` and ``pred_label`` set.

        Args:
            logits (Tensor): N x C.
            samples (list): N data samples of mmcls or mmpretrain.
        """
        for scores, sample in zip(logits.softmax(1), samples):
            sample.set_pred_score(scores).set_pred_label(scores.argmax())
        return samples


@MODELS.register_module()
class TorchModel(BaseModel):
    """Make a model of OpenMMLab of any torch network.

    ``tools/ptq.py``, data sets and metrics then work for it unchanged.

    Example:
        A config's model::

            model = dict(
                type='mmrazor_brecq.TorchModel',
                network=dict(type='torchvision.models.resnet18'),
                data_preprocessor=dict(
                    type='ImgDataPreprocessor',
                    mean=[123.675, 116.28, 103.53],
                    std=[58.395, 57.12, 57.375],
                    bgr_to_rgb=True,
                ),
            )

    Args:
        network (dict | nn.Module): The network, or what makes it: ``type``
            is the dotted path of a class or a function, such as
            ``timm.create_model``; the other keys are its arguments.
        task (dict, optional): What the outputs mean: an object with
            ``loss`` and ``predict``; by default :class:`Classification`.
        data_preprocessor (dict, optional): As in mmengine.
        init_cfg (dict, optional): As in mmengine.

    Raises:
        TypeError: If what is made is no ``nn.Module``.
        ValueError: If ``network.type`` is the path of nothing.
    """

    def __init__(
        self,
        network: Union[dict, nn.Module],
        task: Optional[dict] = None,
        data_preprocessor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if isinstance(network, dict):
            network = _make(**network)
        if not isinstance(network, nn.Module):
            raise TypeError(
                f'The network is a {type(network).__name__}, expected an '
                'nn.Module: change `network` of TorchModel'
            )
        self.network = network
        self.task = TASK_UTILS.build(task or dict(type='Classification'))
        self._register_load_state_dict_pre_hook(self._take_bare_network)

    @property
    def backbone(self) -> nn.Module:
        """The network, in which units are looked for."""
        return self.network

    def forward(
        self,
        inputs: Tensor,
        data_samples: Optional[list] = None,
        mode: str = 'tensor',
    ) -> Any:
        """Run the network; see :class:`mmengine.model.BaseModel`."""
        outputs = self.network(inputs)
        if mode == 'tensor':
            return outputs
        work = self.task.loss if mode == 'loss' else self.task.predict
        return work(outputs, data_samples)

    def _take_bare_network(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        """Take a checkpoint of the network alone."""
        start = f'{prefix}network.'
        own = [key for key in state_dict if key.startswith(prefix)]
        if not any(key.startswith(start) for key in own):
            for key in own:
                name = key.removeprefix(prefix)
                state_dict[start + name] = state_dict.pop(key)


def _make(type: str, **arguments: Any) -> Any:  # as configs name it
    """Call what a dotted path names."""
    maker = get_object_from_string(type)
    if not callable(maker):
        raise ValueError(
            f'network.type={type!r}, expected the dotted path of a class or '
            'a function that makes a network, such as '
            "'torchvision.models.resnet18': see that its package is "
            'installed'
        )
    return maker(**arguments)
