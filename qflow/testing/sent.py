"""Sent: a value as the bytes in which it would reach another process, which stay as they are."""

from __future__ import annotations

from typing import Any, final

from qflow.errors import TransportError
from qflow.runtime.codec import decode, encode
from qflow.runtime.log import copied
from qflow.testing.comparing import Difference, difference

PLAIN = "plain data: numbers, text, arrays, tensors, and containers or dataclasses of them"


@final
class Sent:
    """A value, sent; an AssertionError if it does not come back equal.

    Args:
        who: says whose value it is, as an error begins: ``A result of step 'f'``.
        name: of the value in errors.
    """

    def __init__(self, value: Any, who: str, name: str) -> None:
        __tracebackhide__ = True
        try:
            self._body = copied(encode(value))
            back = self.fresh()
        except TransportError as error:
            raise AssertionError(f"{who} can't leave its process. {error}") from error
        except Exception as error:
            raise AssertionError(
                f"{who} can't be built in another process ({type(error).__name__}: {error}). Use {PLAIN}."
            ) from error
        found = difference(value, back)
        if found:
            raise AssertionError(f"{who} comes to another process as something else: {found.told(name)}. Use {PLAIN}.")

    def fresh(self) -> Any:
        """The value, in memory of its own."""
        return decode(self._body, 0, read_only=False, views=False)[0]

    def against(self, value: Any) -> Difference | None:
        """Where another value differs from what was sent."""
        return difference(self.fresh(), value)
