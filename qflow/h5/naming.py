"""Naming: tables and inputs as they are written in a flow over tables, and what is said when they are not."""

from __future__ import annotations

from typing import Any

from qflow.errors import GraphError, got


def normal(name: Any) -> str | None:
    """The name of a table, or of a group of them, as all write it: without slashes that lead nowhere; None: it is none.

    >>> normal("/reco//hits/"), normal("hits/ref"), normal("./hits")
    ('reco/hits', None, None)
    """
    parts = [part for part in name.split("/") if part] if isinstance(name, str) else []
    return "/".join(parts) if parts and not {".", "ref"} & {*parts} else None


def table_name(name: Any, word: str) -> str:
    """The name of a table, or a GraphError."""
    found = normal(name.strip().strip("/ ")) if isinstance(name, str) and "->" not in name else None
    if found is None:
        raise GraphError(f"`{word}` takes the name of a table, as 'hits' or 'reco/hits', but got {got(name)}.")
    return found


def short(table: str) -> str:
    """The last part of a table's name."""
    return table.rpartition("/")[2]


def input_name(name: Any, table: str) -> str:
    """The name of an input, or a GraphError."""
    if not isinstance(name, str) or not name.isidentifier():
        raise GraphError(
            f"The input of table {table!r} needs a name that a parameter can have, but got {got(name)}. Write `name=...`."
        )
    return name
