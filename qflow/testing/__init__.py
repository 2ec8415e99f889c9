"""Testing: what makes the tests of one's own steps short.

    failing  slow  dying         wrap a step's function: for some items it raises, sleeps, ends its worker
    assert_step                  a step or flow does what qflow asks of it: examples, or a Hypothesis strategy
    no_leaks  nothing_left       a pytest fixture, a block: nothing is left behind

With ``engine=qf.engines.Simulated(seed)`` a flow runs in the thread of the test, in an order and with deaths
of workers that the seed chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qflow.testing.asserting import assert_step
from qflow.testing.faults import dying, failing, slow
from qflow.testing.leaks import nothing_left

if TYPE_CHECKING:
    from qflow.testing.fixtures import no_leaks

__all__ = ["assert_step", "dying", "failing", "no_leaks", "nothing_left", "slow"]


def __getattr__(name: str) -> Any:
    """The fixture, which needs pytest."""
    if name != "no_leaks":
        raise AttributeError(f"module 'qflow.testing' has no attribute {name!r}")
    from qflow.testing.fixtures import no_leaks

    return no_leaks
