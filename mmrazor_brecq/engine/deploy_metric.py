"""Measure an exported file by the metrics of its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from torch import Tensor, nn

from ..algorithms import BRECQ
from ..export import DECODES
from ..functional import flatten, tensors
from ..graph import run_float
from ..report import is_error, main_metric
from .data_mistakes import measuring
from .deploy_images import file_inputs
from .loaders import TEST, build_dataloader
from .results import best_metric


def metric_of_file(
    cfg: Config, model: BRECQ, content: bytes, images: int, preprocess: bool
) -> Optional[dict[str, Any]]:
    """Return the main metric of a file, and that of its network in torch.

    What the network makes of its own outputs, such as boxes, is done in
    torch in both cases, and its outputs come from ONNX Runtime in one.

    Args:
        cfg (Config): The config, with ``test_dataloader`` and
            ``test_evaluator``.
        model (BRECQ): The quantized model, on the CPU.
        content (bytes): The file, whose outputs are those of the network.
        images (int): Most images that may be evaluated.
        preprocess (bool): Whether the file normalizes the images itself.

    Returns:
        dict: ``name``, ``file``, ``torch`` and ``images``; None where the
        outputs cannot be put in place or there are more test images, for
        of a part of them some metrics are another number.
    """
    from ..export.session import open_session, run

    loader: Any = build_dataloader(cfg.test_dataloader, key=TEST)
    count = len(loader.dataset)
    if count > images:
        print_log(
            f'There are {count} test images: the metric of the file is '
            f'measured with --images {count} (`images`)',
            'current',
        )
        return None
    session = open_session(content)
    size = session.get_inputs()[0].shape[1:]
    evaluators = Evaluator(cfg.test_evaluator), Evaluator(cfg.test_evaluator)
    for evaluator in evaluators:
        evaluator.dataset_meta = getattr(loader.dataset, 'metainfo', None)
    module: Optional[nn.Module] = None
    with measuring(), torch.no_grad():
        for data in loader:
            given, data = file_inputs(model, data, preprocess)
            if list(given.shape[1:]) != size:
                print_log(
                    'Test images have several sizes, and the file takes one: '
                    'its metric is not measured. Give `Pad(size=(W, H))` to '
                    'the pipeline of `test_dataloader`',
                    'current',
                )
                return None
            if module is None:
                module = _head_of(model.architecture, data['inputs'])
            if module is None:
                return None
            found = [torch.from_numpy(x) for x in run(session, given)]
            evaluators[0].process(model(**data, mode='predict'), data)
            with _in_place(module, found):
                evaluators[1].process(model(**data, mode='predict'), data)
    in_torch, of_file = (e.evaluate(count) for e in evaluators)
    name = main_metric(dict(quantized=in_torch, metric=best_metric(cfg)))
    return dict(
        name=name,
        file=float(of_file[name]),
        torch=float(in_torch[name]),
        images=count,
    )


def metric_problem(metric: Optional[dict], least: float) -> Optional[str]:
    """Return what is wrong with a file's metric, None if nothing is.

    Args:
        metric (dict, optional): Of :func:`metric_of_file`.
        least (float): Smallest fraction of the metric in torch, 0 to 1.
    """
    if metric is None:
        return None
    better, worse = metric['torch'], metric['file']
    if is_error(metric['name']):
        better, worse = worse, better
    if worse >= least * better:
        return None
    return (
        f'its {metric["name"]} is {metric["file"]:.4g}, and '
        f'{metric["torch"]:.4g} in torch, expected {least:.0%} of it '
        '(--least-metric, `least_metric`)'
    )


def _head_of(network: nn.Module, images: Tensor) -> Optional[nn.Module]:
    """Return the head whose outputs are those of a network, if it has one."""
    seen: list[object] = []

    def note(output: object) -> object:
        seen[:] = [output]  # A run past the call becomes one within it.
        return output

    for module in network.children():
        if not hasattr(module, DECODES):
            continue
        with _changed(module, note):
            outputs = tensors(run_float(network, images[:1]))
        found = tensors(seen)
        if [id(x) for x in found] == [id(x) for x in outputs]:
            return module
    return None


def _in_place(
    module: nn.Module, outputs: Sequence[Tensor]
) -> AbstractContextManager[None]:
    """Return a context in which a module puts out other tensors."""

    def replace(output: object) -> object:
        leaves, rebuild = flatten(output)
        rest = iter(outputs)
        return rebuild(
            [
                next(rest).view_as(x) if isinstance(x, Tensor) else x
                for x in leaves
            ]
        )

    return _changed(module, replace)


@contextmanager
def _changed(
    module: nn.Module, change: Callable[[object], object]
) -> Iterator[None]:
    """Return a context in which a module's output goes through a function.

    Detectors run ``head.forward`` past ``head()``, which no hook sees.
    """
    forward = module.forward
    vars(module)['forward'] = lambda *args, **kwargs: change(
        forward(*args, **kwargs)
    )
    try:
        yield
    finally:
        del vars(module)['forward']
