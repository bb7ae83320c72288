"""What is done as soon as somebody imports a module of another package, so that an import of ours takes no time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Action = Callable[[ModuleType], None]


def after_import(name: str, action: Action) -> None:
    """Call `action` with the module of that name: now if it is imported, else when somebody imports it, and whenever it
    is reloaded."""
    finder = next((each for each in sys.meta_path if isinstance(each, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    finder.actions[name] = action
    if name in sys.modules:
        action(sys.modules[name])


class _Finder(MetaPathFinder):
    """Finds the modules that something waits for, where they would be found without it."""

    def __init__(self) -> None:
        self.actions: dict[str, Action] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self.actions.get(fullname)
        if action is None:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next((found for each in others if (found := each.find_spec(fullname, path, target)) is not None), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if module.__name__ == fullname:  # a loader may be that of other modules, too
                action(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
