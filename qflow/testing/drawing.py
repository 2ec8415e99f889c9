"""Drawing: the values of a Hypothesis strategy, for a check of lists of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("Strategies need Hypothesis. Install it: pip install 'qflow[testing]'") from error

from qflow.graph.flow import Flow

MOST = 8  # values at a time: enough that items wait, overtake and are replayed; a simulated run takes 2 to 5 ms


def check_drawn(flow: Flow[Any, Any], strategy: st.SearchStrategy[Any], check: Callable[[list[Any]], None]) -> None:
    """Run a check for lists of drawn values; the simplest that fails is told with the error."""
    __tracebackhide__ = True

    def assert_step(values: Any) -> None:  # so it is named where a failure is told
        __tracebackhide__ = True
        check(values)

    # Hypothesis remembers failures under the source and signature: those of another flow would be taken for shrunk.
    assert_step.__annotations__["values"] = f"{flow!r}, {strategy!r}"
    quiet = {*settings().suppress_health_check, HealthCheck.too_slow}
    several = st.lists(strategy, min_size=1, max_size=MOST)
    settings(deadline=None, suppress_health_check=[*quiet])(given(several)(assert_step))()
