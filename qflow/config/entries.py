"""Entries: a file of YAML becomes a flow over tables.

``flow``
    ``source``: a table of the input, or the name of an entry; ``stages``: names of entries, in order; ``drop``: tables that are
    only wanted meanwhile.
the entry of a source
    ``table``; with ``function: module:name`` what makes its rows, as ``of`` of `qflow.h5.rows`, given ``params``; without it
    ``size``, ``start``, ``stop``; ``name``: of the input.
the entry of a stage
    ``function: module:name``, a function, or a class whose instances are called; or ``stage: module:name``, one with state, as
    `qflow.h5.stage` has it. ``params``: its keyword arguments, of a class those that make it. ``requires``: inputs by name, as
    `qflow.h5.need` has them: a path, or ``[path, index]``. ``append``: a table, or the arguments of `qflow.h5.append`:
    ``table``, ``refs``, ``name``, ``dtype``, ``attrs``.
``resources``
    by the name of a parameter ``function: module:name``, which makes it once, with ``params``; or ``value``. A function that
    names it among its parameters is given it.
``attrs``
    attributes by the groups of the output.

Only the modules that are named are imported, and only functions that are named are called.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from qflow import h5
from qflow.config.nodes import mapping, plain, read, sequence, text, where, wrong
from qflow.errors import GraphError, listed, near
from qflow.graph.flow import Flow, Map, Operator
from qflow.graph.function import Function, inputs_of, makes_callables
from qflow.graph.step import Step
from qflow.h5.inputs import Rows
from qflow.h5.outputs import checked_attrs

OWN = ("flow", "resources", "attrs")
FLOW = ("source", "stages", "drop")
SOURCE = ("table", "name", "size", "start", "stop", "function", "params")
STAGE = ("function", "stage", "params", "requires", "append")
APPEND = ("table", "refs", "name", "dtype", "attrs")
RESOURCE = ("function", "params", "value")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A flow that was written in YAML.

    Attributes:
        flow: of it.
        drop: tables that are only wanted meanwhile.
        attrs: attributes by the groups of the output.
        resources: by the name of a parameter what makes it.
    """

    flow: Flow[Any, Any]
    drop: tuple[str, ...]
    attrs: Mapping[str, Mapping[str, Any]]
    resources: Mapping[str, Callable[[], Any]]

    def params(self) -> dict[str, Any]:
        """The resources that functions name, made."""
        parts = [part for each in self.flow.operators for part in each.inside]
        calls = [function.inputs for part in parts for function in part.functions]
        calls += [inputs_of(part.of) for part in parts if isinstance(part, Rows) and callable(part.of)]
        named = {name for inputs in calls for name in inputs.names}
        return {name: make() for name, make in self.resources.items() if name in named}


def configuration(path: str) -> Configuration:
    """The flow of a file.

    Raises:
        GraphError: it is wrong; the text begins with file and line.
    """
    top = read(path)
    entries = mapping(top, "A configuration")
    if "flow" not in entries:
        raise wrong(top, f"A configuration has a key 'flow'{near('flow', entries)}: `flow: {{source: hits, stages: [...]}}`.")
    flow = mapping(entries["flow"], "`flow`", FLOW)
    if "source" not in flow:
        raise wrong(entries["flow"], "`flow` has a `source`: a table, or the name of an entry.")
    operators = [_source(flow["source"], entries)]
    for node in sequence(flow["stages"], "`stages`") if "stages" in flow else []:
        operators += _stage(node, entries)
    resources = mapping(entries["resources"], "`resources`") if "resources" in entries else {}
    attrs = mapping(entries["attrs"], "`attrs`") if "attrs" in entries else {}
    return Configuration(
        Flow(*operators),
        tuple(text(node) for node in (sequence(flow["drop"], "`drop`") if "drop" in flow else [])),
        {group: _attrs(group, node) for group, node in attrs.items()},
        {name: _resource(node) for name, node in resources.items()},
    )


def _source(node: Any, entries: Mapping[str, Any]) -> Any:
    if text(node) not in entries or text(node) in OWN:
        with _at(node):
            return _placed(h5.rows(text(node)), node)
    entry = entries[text(node)]
    parts = mapping(entry, f"The source {text(node)!r}", SOURCE)
    if "table" not in parts:
        raise wrong(entry, f"The source {text(node)!r} has a `table`, whose rows the flow goes through.")
    given: dict[str, Any] = {word: plain(parts[word]) for word in ("name", "size", "start", "stop") if word in parts}
    if "function" in parts:
        params, function = _params(parts), _function(parts["function"])
        _check_params(function, params, parts)
        given["of"] = partial(function, **params) if params else function
    elif "params" in parts:
        raise wrong(parts["params"], "`params` are for the `function` of a source that makes its rows.")
    with _at(entry):
        return _placed(h5.rows(text(parts["table"]), **given), entry)


def _stage(node: Any, entries: Mapping[str, Any]) -> Iterator[Operator[Any, Any]]:
    """The operators of a stage."""
    name = text(node)
    known = [each for each in entries if each not in OWN]
    if name not in known:
        raise wrong(node, f"There is no entry {name!r}{near(name, known)}; there are {listed(known)}.")
    entry = entries[name]
    parts = mapping(entry, f"The stage {name!r}", STAGE)
    words = [word for word in ("function", "stage") if word in parts]
    if len(words) != 1:
        raise wrong(entry, f"The stage {name!r} has either a `function` or a `stage`: `function: module:name`.")
    if "requires" in parts:
        paths = {each: plain(path) for each, path in mapping(parts["requires"], "`requires`").items()}
        with _at(parts["requires"]):
            yield _placed(h5.need(**paths), parts["requires"])
    params, function = _params(parts), _function(parts[words[0]])
    _check_params(function, params, parts)
    with _at(parts[words[0]]):
        if isinstance(function, Step):
            if words == ["stage"]:
                raise wrong(parts["stage"], f"{text(parts['stage'])!r} has a mark, so it works in workers: write `function:`.")
            bound = function(**params) if makes_callables(function.function.call) else function.bind(**params)
            yield _placed(bound if params else function.using(), parts["function"])
        elif words == ["stage"]:
            yield _placed(h5.stage(partial(function, **params) if params else function), parts["stage"])
        elif makes_callables(function):
            yield _placed(Map(Function(function, (), ((), tuple(params.items())))), parts["function"])
        else:
            yield _placed(Map(Function(function, tuple(params.items()))), parts["function"])
    if "append" in parts:
        yield _append(parts["append"])


def _append(node: Any) -> Any:
    if hasattr(node, "value") and isinstance(node.value, str):
        given: dict[str, Any] = {"table": text(node)}
    else:
        parts = mapping(node, "`append`", APPEND)
        if "table" not in parts:
            raise wrong(node, "`append` has a `table`.")
        given = {word: plain(part) for word, part in parts.items()}
        if isinstance(given.get("dtype"), list):
            given["dtype"] = [tuple(field) for field in given["dtype"]]
    with _at(node):
        return _placed(h5.append(given.pop("table"), **given), node)


def _resource(node: Any) -> Callable[[], Any]:
    parts = mapping(node, "A resource", RESOURCE)
    if ("function" in parts) == ("value" in parts):
        raise wrong(node, "A resource has either a `function`, which makes it, or a `value`.")
    if "value" in parts:
        found = plain(parts["value"])
        return lambda: found
    params, function = _params(parts), _function(parts["function"])
    _check_params(function, params, parts)
    return partial(function, **params)


def _function(node: Any) -> Any:
    """What ``module:name`` stands for."""
    module, colon, name = text(node).partition(":")
    if not colon or not module or not name:
        raise wrong(node, f"A function is written as module:name, but got {text(node)!r}.")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) == module
        hint = "Is its folder the current one, or on PYTHONPATH?" if missing else "Something that it imports is missing."
        raise wrong(node, f"the module {module!r} can't be imported: {error}. {hint}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise wrong(node, f"{module!r} has no {name!r}{near(part, dir(found))}.")
        found = getattr(found, part)
    if not callable(found):
        raise wrong(node, f"{text(node)!r} is {type(found).__name__}, no function and no class.")
    return found


def _check_params(function: Any, params: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """A GraphError for parameters that a function does not have."""
    try:
        named = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return
    if any(each.kind is each.VAR_KEYWORD for each in named.values()):
        return
    for name in params:
        if name not in named:
            node = mapping(parts["params"], "`params`")[name]
            raise wrong(node, f"{text(_called(parts))} has no parameter {name!r}{near(name, named)}.")
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, each in named.items() if makes_callables(function) else ():
        if each.default is each.empty and each.kind not in kinds and name not in params:
            raise wrong(_called(parts), f"{text(_called(parts))} is made with a parameter {name!r}: `params: {{{name}: ...}}`.")


def _called(parts: Mapping[str, Any]) -> Any:
    return parts["function"] if "function" in parts else parts["stage"]


def _params(parts: Mapping[str, Any]) -> dict[str, Any]:
    return _dict(parts["params"], "`params`") if "params" in parts else {}


def _dict(node: Any, what: str) -> dict[str, Any]:
    mapping(node, what)
    return dict(plain(node))


def _attrs(group: str, node: Any) -> dict[str, Any]:
    with _at(node):
        return checked_attrs(_dict(node, f"`attrs` of {group!r}"), f"of {group!r}")


@contextmanager
def _at(node: Any) -> Iterator[None]:
    """What is said to be wrong is said to be so at a node."""
    try:
        yield
    except GraphError as error:
        raise wrong(node, str(error)) from None
    except TypeError as error:
        raise wrong(node, f"{error}.") from None


def _placed(operator: Any, node: Any) -> Any:
    """An operator that knows where it was written; see `qflow.h5.checking`."""
    operator.where = where(node)
    return operator
