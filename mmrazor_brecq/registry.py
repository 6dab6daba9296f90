"""Child registries of mmengine's, found by config files under our scope.

A downstream repository adds a part with ``@MODELS.register_module()`` (or
one of the others) and names it in a config; ``custom_imports`` is all that
it takes. What its constructor annotates is what it accepts.
"""

from __future__ import annotations

from typing import Any, Optional, Union

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import Registry as MMEngineRegistry
from mmengine.registry import build_from_cfg

from .validation import Config, KeyPath, validated

SCOPE = 'mmrazor_brecq'


class Registry(MMEngineRegistry):
    """One whose classes judge their arguments, however they are built."""

    def _register_module(
        self,
        module: Any,
        module_name: Optional[Union[str, list[str]]] = None,
        force: bool = False,
    ) -> None:
        super()._register_module(module, module_name, force)
        if isinstance(module, type):
            validated(module)


def build_in_scope(
    cfg: Any, *args: Any, registry: Registry, **kwargs: Any
) -> Any:
    """Build a part of ours by its bare name, whatever the default scope.

    A config's default scope is that of its model, such as ``mmcls``; our
    parts look for theirs here. Those of others are named with their scope.

    Raises:
        ValueError: If there is none of that name, or a key is wrong.
    """
    if isinstance(cfg, str):
        cfg = dict(type=cfg)
    cfg = dict(cfg)
    cfg.setdefault('_scope_', SCOPE)
    kind = cfg.get('type', (kwargs.get('default_args') or {}).get('type'))
    Config(object, registry).part(kind, cfg['_scope_'], KeyPath())
    return build_from_cfg(cfg, registry, *args, **kwargs)


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

#: Data sets that the demo needs.
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope=SCOPE,
    locations=['mmrazor_brecq.datasets'],
)
