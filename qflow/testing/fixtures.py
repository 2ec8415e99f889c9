"""Fixtures: the watch over leaks, for pytest."""

from __future__ import annotations

from collections.abc import Iterator

try:
    import pytest
except ImportError as error:
    raise ImportError("qflow.testing.no_leaks needs pytest. Install it: pip install 'qflow[testing]'") from error

from qflow.testing.leaks import left_over, set_tag, snapshot

set_tag()


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails a test that leaves a process, thread, descriptor, mapping, /dev/shm entry or changed state.

    Import it in ``conftest.py``, and name it first in a test, so that what other fixtures make is made later
    and gone earlier; or let all tests use it:

        from qflow.testing import no_leaks  # noqa: F401

        def test_reading(no_leaks, files): ...

        pytestmark = pytest.mark.usefixtures("no_leaks")       # in a file
        usefixtures = ["no_leaks"]                             # in pyproject.toml, [tool.pytest.ini_options]

    What was there before the test, as the warm workers of a module's fixture, may stay. `leaks.nothing_left`
    is the same for a block, and says what is looked for.
    """
    before = snapshot()
    yield
    found = left_over(before)
    if found:
        pytest.fail("left behind:\n  " + "\n  ".join(found), pytrace=False)
