"""Shipping: steps on their way to the workers.

A step travels by name when a worker can import it, else by value; what it carries must be able to travel.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from qflow.errors import GraphError, describe
from qflow.graph.context import Context
from qflow.graph.function import Function
from qflow.graph.plan import Group, Plan
from qflow.runtime.codec import captured, sendable
from qflow.runtime.environment import handles
from qflow.runtime.places import carried as captures
from qflow.runtime.shared import Pickler


def pickled(group: Group) -> bytes:
    """A group as bytes: by name what a worker can import, by value what lives in a script or notebook.

    By reference what is shared, as far as this thread's hold takes it.
    """
    file = io.BytesIO()
    try:
        Pickler(file, 5).dump(group)
    except Exception as error:
        raise _unpicklable(group, error) from error
    return file.getvalue()


def carried(context: Context) -> bytes:
    """A run's context as bytes."""
    file = io.BytesIO()
    for name, value in context.params.items():
        if not sendable(value):
            raise GraphError(f"The parameter `{name}` can't be sent to a worker, {describe(value)}. Make it inside the step.")
    Pickler(file, 5).dump(context)
    return file.getvalue()


def _unpicklable(group: Group, error: Exception) -> GraphError:
    """Which step, and which object it carries."""
    for operator in group.operators:
        function = getattr(operator, "function", None)
        if not isinstance(function, Function) or sendable(operator):
            continue
        for name, value in captures(function):
            if not sendable(value):
                return GraphError(
                    f"Step {operator.name!r} can't be sent to a worker: it captures `{name}`, {describe(value)} "
                    f"({type(error).__name__}: {error}). "
                    "Open or make it inside the function, or in the constructor of a class whose instances are the step."
                )
        return GraphError(f"Step {operator.name!r} can't be sent to a worker ({type(error).__name__}: {error}).")
    return GraphError(f"Step {group.name!r} can't be sent to a worker ({type(error).__name__}: {error}).")


def check_handles(plan: Plan) -> None:
    """Steps that would go on with an open handle of this process, in a copy of it."""
    for group in plan.groups:
        for operator in group.operators:
            function = getattr(operator, "function", None)
            for name, value in handles(captured(function.call)) if isinstance(function, Function) else ():
                raise GraphError(
                    f"Step {operator.name!r} uses `{name}`, {describe(value)}, which a forked worker would share with us. "
                    "Open or make it inside the function, or in the constructor of a class whose instances are the step."
                )


def source_files(plan: Plan) -> tuple[tuple[str, int], ...]:
    """The files that imported steps come from, with their times: when one is changed, new workers read it anew."""
    files = set()
    for call in _calls(plan):
        module = sys.modules.get(getattr(call, "__module__", None) or "")
        name = getattr(module, "__file__", None)
        if name and getattr(module, "__name__", "") != "__main__":
            with contextlib.suppress(OSError):
                files.add((name, os.stat(name).st_mtime_ns))
    return tuple(sorted(files))


def _calls(plan: Plan) -> Iterator[Any]:
    """The user's functions and classes in a plan."""
    for group in plan.groups:
        for operator in group.operators:
            for part in operator.inside:
                function = getattr(part, "function", None)
                if isinstance(function, Function):
                    yield function.call


def installed(plan: Plan) -> list[str]:
    """Installed packages that the steps name, and the user's modules below them: the nursery loads them once for all workers.

    Also the modules of this library that define the operators: `qflow.h5` loads HDF5. Not the user's own modules, which may
    change, and not mpi4py: only ranks begin MPI (an h5py that was built with it loads the library, and begins nothing).
    """
    parts = [part for group in plan.groups for operator in group.operators for part in operator.inside]
    found = {name for value in (*parts, *_calls(plan)) if (name := _module_of(value)).startswith("qflow.")}
    seen = set[str]()
    left = [value for call in _calls(plan) for value in _named(call)]
    while left:
        name = _module_of(left.pop())
        if name in seen or name.partition(".")[0] in _NOT_LOADED:
            continue
        seen.add(name)
        module = sys.modules.get(name)
        if "-packages" in (getattr(module, "__file__", None) or ""):
            found.add(name)
        elif module is not None:
            left += list(vars(module).values())
    return sorted(found)


_NOT_LOADED = {"", "__main__", "mpi4py", "qflow", *sys.stdlib_module_names}


def _module_of(value: Any) -> str:
    """The name of the module that a value is, or is from."""
    with contextlib.suppress(Exception):  # of a proxy, whatever that is
        name = value.__name__ if isinstance(value, ModuleType) else value.__module__
        return name if isinstance(name, str) else ""
    return ""


def _named(call: Any) -> Iterator[Any]:
    """What a function needs: itself, and what it carries; a function of a module, all that this has."""
    yield from (call, type(getattr(call, "__self__", None)))
    yield from (value for _, value in captured(call))
