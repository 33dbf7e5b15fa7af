"""YAML as configs and flags hold it: bounded, every key once, and times and dates as the text that they are."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 100
"""Levels of groups and lists inside each other; the deepest key of a config is at the sixth."""
LARGEST = 1_000_000
"""Values, of which an alias repeats those of its anchor: a few lines can stand for more than any memory holds."""
TEXT = "tag:yaml.org,2002:str"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
TIMESTAMP = "tag:yaml.org,2002:timestamp"


class TimesAsText:
    """A part of a YAML loader: `12:30:45` is no number to the base of 60, and `2024-02-31` need not be a date.

    A value that its own type cannot hold is an error of YAML, with its line.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Returns the tag of a node."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[misc]
        return TEXT if tag == TIMESTAMP or (tag in NUMBERS and ":" in value) else tag

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Builds the value of a node."""
        try:
            return super().construct_object(node, deep)  # type: ignore[misc]
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            shown = repr(node.value) if len(str(node.value)) <= 40 else f"{str(node.value)[:40]!r}…"
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown} cannot be read as {kind}", node.start_mark
            ) from error


class StrictLoader(TimesAsText, yaml.SafeLoader):
    """YAML's safe loader, which refuses repeated keys (YAML lets the last one win), and sizes without a bound."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # of complete nodes, by their identity

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Builds the node of an event and of all inside it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if self._depth == DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"it is nested more than {DEEPEST} levels deep", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[id(node)] = 1 + sum(self._sizes[id(child)] for child in _children(node))
        elif id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, "an alias stands inside its own anchor", mark)
        size = self._sizes[id(node)]
        if size > LARGEST:
            raise yaml.composer.ComposerError(None, None, f"its aliases stand for more than {LARGEST:,} values", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds a mapping whose keys are distinct."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key cannot be a group or a list; fill in the {{ }} of a template"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is repeated", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _children(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def read_yaml(text: str) -> Any:
    """Returns the content of YAML text.

    >>> read_yaml("{at: 12:30:45, on: 2024-02-31, n: 3}")
    {'at': '12:30:45', True: '2024-02-31', 'n': 3}

    Raises:
        yaml.YAMLError: It is none, or exceeds `DEEPEST` or `LARGEST`.
    """
    return yaml.load(text, StrictLoader)
