"""Naming: tables and inputs as they are written in a flow over tables, and what is said when they are not."""

from __future__ import annotations

from typing import Any

from qflow.errors import GraphError, got
from qflow.h5.block import Block


def at_work(value: Any, word: str) -> Block:
    """A block, or a TypeError that says where ``h5.<word>`` stands."""
    if not isinstance(value, Block):
        raise TypeError(f'`h5.{word}` stands behind `h5.rows`, but got {got(value)}. Write `h5.rows("hits") | h5.{word}(...)`.')
    return value


def table_name(name: Any, word: str) -> str:
    """The name of a table without slashes around it, or a GraphError."""
    if not isinstance(name, str) or not name.strip("/ ") or "->" in name or "ref" in name.split("/"):
        raise GraphError(f"`{word}` takes the name of a table, as 'hits' or 'reco/hits', but got {got(name)}.")
    return name.strip("/ ")


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
