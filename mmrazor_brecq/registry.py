"""Registries of parts that configs name, children of those of mmengine.

A downstream repository adds a part with ``@MODELS.register_module()`` (or
another registry) and names it in a config with ``custom_imports``. The
annotations of its constructor declare which values it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import Registry as MMEngineRegistry
from mmengine.registry import build_from_cfg

from .validation import Config, KeyPath, validated

SCOPE = 'mmrazor_brecq'


class Registry(MMEngineRegistry):
    """Registry whose classes validate their arguments."""

    def _register_module(
        self,
        module: Callable[..., Any],
        module_name: Optional[Union[str, list[str]]] = None,
        force: bool = False,
    ) -> None:
        super()._register_module(module, module_name, force)
        if isinstance(module, type):
            validated(module)


def build_in_scope(
    cfg: Union[str, Mapping[str, Any]],
    registry: Registry,
    default_args: Optional[Mapping[str, Any]] = None,
) -> Any:
    """Build a part from its config, in the scope of this package.

    A name without a scope means a part of this package, also in configs
    whose default scope is another one, such as ``mmcls``.

    Args:
        cfg (str | dict): The config, or the name of the part.
        registry (Registry): Registry of the part.
        default_args (dict, optional): Keys that the config may leave out.

    Raises:
        ValueError: If there is no part of that name, or a key is wrong.
    """
    if isinstance(cfg, str):
        cfg = dict(type=cfg)
    cfg = dict(cfg)
    cfg.setdefault('_scope_', SCOPE)
    kind = cfg.get('type', (default_args or {}).get('type'))
    Config(object, registry).part(kind, cfg['_scope_'], KeyPath())
    return build_from_cfg(cfg, registry, default_args)


#: Algorithms, quantizers and roundings: everything that is an `nn.Module`.
MODELS = Registry(
    'model',
    build_func=build_in_scope,
    parent=MMENGINE_MODELS,
    scope=SCOPE,
    locations=[
        'mmrazor_brecq.algorithms',
        'mmrazor_brecq.models',
        'mmrazor_brecq.quantizers',
    ],
)

#: The loop that drives a post-training quantization.
LOOPS = Registry(
    'loop',
    parent=MMENGINE_LOOPS,
    scope=SCOPE,
    locations=['mmrazor_brecq.engine'],
)

#: Hooks of the runner. There are none of ours, but a config that inherits one
#: of this package gives its hooks our scope, and mmengine warns without this.
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope=SCOPE,
    locations=['mmrazor_brecq.engine'],
)

#: Observers, partitions, objectives, reconstructors, cost models, searchers:
#: plain objects.
TASK_UTILS = Registry(
    'task util',
    build_func=build_in_scope,
    parent=MMENGINE_TASK_UTILS,
    scope=SCOPE,
    locations=[
        'mmrazor_brecq.quantizers',
        'mmrazor_brecq.graph',
        'mmrazor_brecq.models',
        'mmrazor_brecq.objectives',
        'mmrazor_brecq.reconstruction',
        'mmrazor_brecq.mixed_precision',
    ],
)

#: Data sets of the demo.
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope=SCOPE,
    locations=['mmrazor_brecq.datasets'],
)
