"""Any torch network as a model of OpenMMLab, through a config."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.utils import get_object_from_string
from torch import Tensor, nn, stack

from ..functional import Nested
from ..registry import MODELS, TASK_UTILS


@TASK_UTILS.register_module()
class Classification:
    """Task of a network whose outputs are N x C logits of C classes.

    It is the default ``task`` of :class:`TorchModel`.
    """

    def loss(self, logits: Tensor, samples: list) -> dict[str, Tensor]:
        """Return the cross-entropy, under the key ``loss``.

        Args:
            logits (Tensor): N x C.
            samples (list): N data samples with ``gt_label``: a tensor of
                mmpretrain, or a ``LabelData`` of mmcls.
        """
        found = [getattr(s.gt_label, 'label', s.gt_label) for s in samples]
        labels = stack([label.reshape(()) for label in found])
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
    """A torch network as a model of OpenMMLab.

    ``tools/ptq.py``, data sets and metrics work with it unchanged.

    Example:
        The model in a config::

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
        network (dict | nn.Module): The network, or a dict: its ``type`` is
            the dotted path of a class or function that makes it, such as
            ``timm.create_model``, and its other keys are the arguments.
        task (dict, optional): What the outputs mean: an object with
            ``loss`` and ``predict``. Default: :class:`Classification`.
        data_preprocessor (dict, optional): See
            :class:`mmengine.model.BaseModel`.
        init_cfg (dict, optional): See :class:`mmengine.model.BaseModel`.

    Raises:
        TypeError: If ``network`` makes something else than an
            ``nn.Module``.
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
        self._register_load_state_dict_pre_hook(self._add_prefix)

    @property
    def backbone(self) -> nn.Module:
        """The network, which is searched for units."""
        return self.network

    def forward(
        self,
        inputs: Tensor,
        data_samples: Optional[list] = None,
        mode: str = 'tensor',
    ) -> Nested:
        """Run the network; see :class:`mmengine.model.BaseModel`.

        Args:
            inputs (Tensor): N x C x H x W, preprocessed.
            data_samples (list, optional): N data samples; the task of the
                modes ``'loss'`` and ``'predict'`` needs them.
            mode (str): ``'tensor'``, ``'loss'`` or ``'predict'``.
        """
        outputs = self.network(inputs)
        if mode == 'tensor':
            return outputs
        run = self.task.loss if mode == 'loss' else self.task.predict
        return run(outputs, data_samples)

    def _add_prefix(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        """Add ``network.`` to the keys of a checkpoint of the bare network.

        The state that is about to be loaded is changed in place; ``prefix``
        is that of this model's keys in it.
        """
        network_prefix = f'{prefix}network.'
        keys = [key for key in state_dict if key.startswith(prefix)]
        if not any(key.startswith(network_prefix) for key in keys):
            for key in keys:
                name = key.removeprefix(prefix)
                state_dict[network_prefix + name] = state_dict.pop(key)


def _make(type: str, **arguments: Any) -> Any:
    """Call the class or function of a dotted path.

    Args:
        type (str): The path. It has the name of its key in configs.
        arguments: Arguments of the call.
    """
    maker = get_object_from_string(type)
    if not callable(maker):
        raise ValueError(
            f'network.type={type!r}, expected the dotted path of a class or '
            'a function that makes a network, such as '
            "'torchvision.models.resnet18': see that its package is "
            'installed'
        )
    return maker(**arguments)
