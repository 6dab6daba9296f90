"""Validate the configs of parts to their last key before one is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Union

from .declared import Target, check_keys, declared
from .typed import Mark
from .words import KeyPath, did_you_mean, show

if TYPE_CHECKING:
    from mmengine.registry import Registry


@dataclass(frozen=True, eq=False)
class Config(Mark):
    """Mark of an argument that takes the config of a part, or its name.

    The part's own constructor declares the keys, and they are validated
    before anything is built.

    Args:
        base (type): Base class of the part. A class of another package needs
            its methods only.
        registry (Registry, optional): Registry of the parts. Without one,
            the keys are the arguments of ``base`` itself.
        default (str, optional): The type if a config has none.
        number_key (str, optional): The key that a single number stands for.
        excluded (tuple[str]): Arguments that a config must not have.

    Example:
        ``Annotated[dict, Config(Observer, TASK_UTILS)]`` takes
        ``dict(type='LpObserver', p=2)`` as well as ``'LpObserver'``.
    """

    base: type
    registry: Optional[Registry] = None
    default: Optional[str] = None
    number_key: Optional[str] = None
    excluded: tuple[str, ...] = ()

    def expected(self) -> str:
        """Describe in words which values are expected."""
        words = 'a dict'
        if self.registry is not None:
            names = self._names(self.registry)
            words += f' with `type`, or one of the names {names}'
        if self.number_key is not None:
            words += f', or a number of {self.number_key}'
        return words

    def is_meant(self, value: object) -> bool:
        """Return whether a value is a dict, or could be the name of a part."""
        is_name = isinstance(value, str) and self.registry is not None
        return is_name or isinstance(value, Mapping)

    def example(self, key: str, value: object) -> str:
        """Return the config of the first part that takes a key."""
        for name in self._names(self.registry) if self.registry else ():
            part = self.registered(name)
            if part and key in declared(part).parameters:
                return f'dict(type={name!r}, {key}={show(value)})'
        return ''

    def validate(self, value: Any, key_path: KeyPath) -> Any:
        """Validate a config.

        Returns:
            dict: The config. A name or a single number has become one.

        Raises:
            ValueError: If it is no config; the message names the key.
        """
        if isinstance(value, str) and self.registry is not None:
            value = dict(type=value)
        elif self.number_key is not None and type(value) is int:
            value = {self.number_key: value}
        if not isinstance(value, Mapping):
            raise key_path.refusal(value, self.expected())
        keys = dict(value)
        part: Target = self.base
        if self.registry is not None:
            scope = keys.pop('_scope_', None)
            part = self.part(keys.pop('type', self.default), scope, key_path)
        check_keys(part, keys, key_path, self.excluded)
        return value

    def part(
        self,
        kind: Union[str, type, None],
        scope: Optional[str],
        key_path: KeyPath,
    ) -> Target:
        """Return the class or function that a config names.

        Args:
            kind (str | type): The ``type`` of the config.
            scope (str, optional): Scope in which the name is looked up.
            key_path (KeyPath): Path of the config.

        Raises:
            ValueError: If there is no such part, or it is of another kind.
        """
        assert self.registry is not None
        if kind is None:
            raise key_path.missing('type')
        found: Any = kind
        if isinstance(kind, str):
            with self.registry.switch_scope_and_registry(
                scope or self.registry.scope
            ) as registry:
                found = registry.get(kind)
        if not self._fits(found, self.registry):
            names = self._names(self.registry)
            raise key_path.key('type', '').refusal(
                kind, f'one of {", ".join(names)}{did_you_mean(kind, names)}'
            )
        return found

    def registered(self, name: str) -> Optional[Target]:
        """Return the part with exactly this name, None if there is none.

        Unlike :meth:`part` it imports nothing, so that it is safe with names
        that come from a file.

        Args:
            name (str): The name without a scope.
        """
        assert self.registry is not None
        part = self.registry.module_dict.get(name)
        fits = part is not None and self._fits(part, self.registry)
        return part if fits else None

    def _fits(self, part: object, registry: Registry) -> bool:
        """Return whether a part is of the kind that is wanted."""
        if not isinstance(part, type):
            return part in registry.module_dict.values()
        if issubclass(part, self.base):
            return True
        # Parts of this package have the base class; those of others need
        # its public methods only.
        return part.__module__.split('.')[0] != __name__.split('.')[0] and all(
            callable(getattr(part, name, None))
            for name, method in vars(self.base).items()
            if callable(method)
            and (not name.startswith('_') or name == '__call__')
        )

    def _names(self, registry: Registry) -> list[str]:
        registry.import_from_location()
        return [
            name
            for name, part in registry.module_dict.items()
            if isinstance(part, type) and issubclass(part, self.base)
        ]
