"""YAML that strangers may have written: read in bounded time and memory, or refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError

_MOST_CHARACTERS = 200_000  # two seconds of parsing
_MOST_VALUES = 100_000  # all aliases written out
_DEEPEST = 40
_KINDS = ("bool", "float", "int", "map", "null", "seq", "str")  # of values: what settings are made of
_LONGEST_NUMBER = 300  # beyond 4,300 digits Python itself would refuse to print it


def read_yaml(file: Path, name: str) -> Any:
    """What a file says.

    Args:
        file: a regular file; devices and pipes may never end.
        name: what messages call it.

    Raises:
        UserError: no such file, one that cannot be read, or one that `parse_yaml` refuses.
    """
    try:
        if not file.is_file():
            raise UserError(f"{name}: no such file")
        with open(file, encoding="utf-8-sig") as opened:
            text = opened.read(_MOST_CHARACTERS + 1)
        return parse_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from None


def parse_yaml(text: str, most_characters: int = _MOST_CHARACTERS) -> Any:
    """The only document in a text, as `yaml.safe_load` has it.

    Aliases may repeat values, but not so often that somebody who walks through all of them is busy for long, and a
    value cannot hold itself. No key stands twice in one mapping, where the first value would be ignored.

    Raises:
        yaml.YAMLError: for all of it: too long, too deep, too many values, a cycle, no YAML, and values such as
            `2025-02-30` for which PyYAML raises errors of many kinds.
    """
    if len(text) > most_characters:
        raise yaml.YAMLError(f"it is longer than {most_characters:,} characters")
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's loader, which counts while it composes: nothing is made before all of it has been found bounded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}  # values in a node that is complete, itself included

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _refusal(f"it is nested more than {_DEEPEST} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and node not in self._sizes:
            if self._is_open(node):
                raise _refusal("a value that holds itself", mark)
            self._sizes[node] = self._size(node)
        if node is not None and self._sizes[node] > _MOST_VALUES:
            raise _refusal(f"it has more than {_MOST_VALUES:,} values, all aliases written out", mark)
        return node

    def _is_open(self, node: Any) -> bool:
        """Whether an alias led to a collection whose end has not been read: only then does it have no end mark."""
        return isinstance(node, yaml.CollectionNode) and node.end_mark is None

    def _size(self, node: Any) -> int:
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in keys:
                        raise _refusal(f"the key {key.value!r} stands twice in one mapping", key.start_mark)
                    keys.add((key.tag, key.value))
            return 1 + sum(self._sizes[key] + self._sizes[value] for key, value in node.value)
        return 1 + sum(map(self._sizes.__getitem__, node.value)) if isinstance(node, yaml.SequenceNode) else 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        kind = str(node.tag).rpartition(":")[2]
        if kind not in _KINDS:
            raise _refusal(f"a value of a kind that settings do not have ({kind})", node.start_mark)
        if kind in ("int", "float") and ":" in node.value:
            raise _refusal(f"{node.value!r} is no number", node.start_mark)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > _LONGEST_NUMBER:
            raise _refusal(f"a number of {len(node.value):,} characters", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            raise _refusal(f"a value that is no {kind} ({error})", node.start_mark) from None


# Text stays text where YAML 1.1 sees a number or a date in it that nobody means: 1:30 as 90, 010 as 8, 2025-01-02.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_BoundedLoader.yaml_implicit_resolvers = {
    first: [
        (tag, _INTEGER if tag.endswith(":int") else re.compile(rf"(?!\S*:)(?:{pattern.pattern})", pattern.flags))
        for tag, pattern in resolvers
        if not tag.endswith(":timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _refusal(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem[:200], problem_mark=mark)
