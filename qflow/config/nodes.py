"""Nodes: YAML as it was read, each part with its file and line, so that an error says where.

Only plain values are made of it, and ``!include other.yaml`` stands for what another file has, beside the one that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

try:
    import yaml
except ImportError as error:
    raise ImportError("Flows in YAML need PyYAML. Install it: pip install 'qflow[h5]'") from error

from qflow.errors import GraphError, listed, near

INCLUDE = "!include"


class _Loader(yaml.SafeLoader):
    """Numbers such as 1e-3 are numbers, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+([.][0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(path: str) -> Any:
    """The node of a file, with those of the files that it includes; a GraphError for what is no YAML."""
    return _read(os.path.abspath(path), path, ())


def _read(path: str, shown: str, inside: tuple[str, ...]) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            loader = _Loader(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"{shown}: can't be read: {getattr(error, 'strerror', None) or error}.") from None
    loader.name = shown
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        raise GraphError(f"{shown}{line}: no YAML: {getattr(error, 'problem', None) or error}.") from None
    if node is None:
        raise GraphError(f"{shown}: the file is empty.")
    return _included(node, os.path.dirname(path), (*inside, path))


def _included(node: Any, folder: str, inside: tuple[str, ...], known: dict[int, Any] | None = None) -> Any:
    """A node with what it includes in place."""
    known = {} if known is None else known
    if id(node) in known:  # an alias
        return known[id(node)]
    known[id(node)] = node
    if node.tag == INCLUDE:
        path = os.path.join(folder, text(node))
        if path in inside:
            raise wrong(node, f"{text(node)!r} includes itself.")
        if not os.path.isfile(path):
            raise wrong(node, f"there is no file {path!r} to include.")
        known[id(node)] = _read(path, os.path.join(os.path.dirname(node.start_mark.name), text(node)), inside)
    elif isinstance(node, yaml.MappingNode):
        node.value = [(key, _included(value, folder, inside, known)) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        node.value = [_included(value, folder, inside, known) for value in node.value]
    return known[id(node)]


def wrong(node: Any, what: str) -> GraphError:
    """The error for a node: file, line and what is wrong with it."""
    return GraphError(f"{where(node)}: {what}")


def where(node: Any) -> str:
    """File and line of a node."""
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


def mapping(node: Any, what: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """The nodes of a mapping by their keys.

    Args:
        what: it is, for errors.
        keys: those that it may have; any when not given.
    """
    if not isinstance(node, yaml.MappingNode):
        raise wrong(node, f"{what} has keys with values, but got {_shown(node)}.")
    seen: dict[str, Any] = {}
    for key, value in node.value:
        if text(key) in seen:
            raise wrong(key, f"{text(key)!r} stands there twice, before in {where(seen[text(key)])}.")
        seen[text(key)] = value
    try:
        yaml.constructor.SafeConstructor().flatten_mapping(node)  # keys that `<<` brings, before its own
    except yaml.YAMLError as error:
        raise wrong(node, f"{getattr(error, 'problem', error)}.") from None
    found = {text(key): (key, value) for key, value in node.value}
    for name, (key, _) in found.items():
        if keys is not None and name not in keys:
            raise wrong(key, f"{what} has no key {name!r}{near(name, keys)}; there are {listed(keys)}.")
    node.value = [*found.values()]  # once each: what `<<` brought, and was said otherwise, is gone
    return {name: value for name, (_, value) in found.items()}


def sequence(node: Any, what: str) -> list[Any]:
    """The nodes of a list; a single value is one of one."""
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null":
        return [node]
    raise wrong(node, f"{what} is a list, but got {_shown(node)}.")


def text(node: Any) -> str:
    """The text of a node."""
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        raise wrong(node, f"a text is wanted, but got {_shown(node)}.")
    return str(node.value)


def plain(node: Any) -> Any:
    """What a node stands for: numbers, texts, lists, dicts, dates."""
    try:
        return yaml.constructor.SafeConstructor().construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or node.start_mark
        raise GraphError(f"{mark.name}:{mark.line + 1}: {getattr(error, 'problem', error)}.") from None


def _shown(node: Any) -> str:
    kinds: Iterator[tuple[type, str]] = iter([(yaml.MappingNode, "keys with values"), (yaml.SequenceNode, "a list")])
    return next((name for kind, name in kinds if isinstance(node, kind)), repr(getattr(node, "value", "")) or "nothing")
