"""Configs of parts: judged down to their last key before one is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .declared import check_keys
from .typed import Mark
from .words import KeyPath, nearest


@dataclass(frozen=True, eq=False)
class Config(Mark):
    """Marks a parameter that takes the config of a part, or its name.

    ``Annotated[dict, Config(Observer, TASK_UTILS)]`` takes
    ``dict(type='LpObserver', p=2)`` and ``'LpObserver'``. The keys are
    judged by the part's own constructor, before anything is built.

    Args:
        base (type): What the part has to be: a subclass of it, or in other
            packages any class that has its methods.
        registry (Registry, optional): Where parts are looked for; without
            one the keys are the arguments of ``base`` itself.
        default (str, optional): Its type where none is given.
        number (str, optional): The key that a number alone stands for.
        settled (tuple[str]): Arguments that are no matter of a config.
    """

    base: type
    registry: Any = None
    default: Optional[str] = None
    number: Optional[str] = None
    settled: tuple[str, ...] = ()

    def words(self) -> str:
        """What is expected."""
        words = 'a dict'
        if self.registry is not None:
            words += f' with `type`, or one of the names {self._names()}'
        if self.number is not None:
            words += f', or a number of {self.number}'
        return words

    def means(self, value: Any) -> bool:
        """Whether it is a config, or could be the name of one."""
        named = isinstance(value, str) and self.registry is not None
        return named or isinstance(value, Mapping)

    def validate(self, value: Any, place: KeyPath) -> Any:
        """Judge a config.

        Returns:
            dict: The config; a name or a number alone has become one.

        Raises:
            ValueError: If it is none; it names the key.
        """
        if isinstance(value, str) and self.registry is not None:
            value = dict(type=value)
        elif self.number is not None and type(value) is int:
            value = {self.number: value}
        if not isinstance(value, Mapping):
            raise place.refusal(value, self.words())
        keys = dict(value)
        part = self.base
        if self.registry is not None:
            scope = keys.pop('_scope_', None)
            part = self.part(keys.pop('type', self.default), scope, place)
        check_keys(part, keys, place, self.settled)
        return value

    def part(self, kind: Any, scope: Optional[str], place: KeyPath) -> Any:
        """The class or function of a type.

        Args:
            kind (str | type): As a config gives it.
            scope (str, optional): Where to look for its name.
            place (KeyPath): Of the config.

        Raises:
            ValueError: If there is none, or it is of another kind.
        """
        if kind is None:
            raise place.missing('type')
        found = kind
        if isinstance(kind, str):
            with self.registry.switch_scope_and_registry(
                scope or self.registry.scope
            ) as registry:
                found = registry.get(kind)
        if not self._fits(found):
            names = self._names()
            raise place.key('type', '').refusal(
                kind, f'one of {", ".join(names)}{nearest(kind, names)}'
            )
        return found

    def registered(self, name: str) -> Any:
        """The part of that very name; None if there is none.

        Nothing is imported for it, unlike for the type in a config of a
        user's.

        Args:
            name (str): Without a scope.
        """
        part = self.registry.module_dict.get(name)
        return part if part is not None and self._fits(part) else None

    def _fits(self, part: Any) -> bool:
        """Whether it is of the kind that is wanted."""
        if not isinstance(part, type):
            return part in self.registry.module_dict.values()
        if issubclass(part, self.base):
            return True
        # Ours say what they are; those of others need no base class.
        return part.__module__.split('.')[0] != __name__.split('.')[0] and all(
            callable(getattr(part, name, None))
            for name, method in vars(self.base).items()
            if callable(method)
            and (not name.startswith('_') or name == '__call__')
        )

    def _names(self) -> list[str]:
        self.registry.import_from_location()
        return [
            name
            for name, part in self.registry.module_dict.items()
            if isinstance(part, type) and issubclass(part, self.base)
        ]
