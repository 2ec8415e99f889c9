"""Scripts of their own: one that hangs says where, and one that leaves something behind is told of."""

from __future__ import annotations

import subprocess

import pytest
from scenario import script


@pytest.mark.slow
def test_a_script_that_hangs_says_where_and_its_workers_too(capsys):
    with pytest.raises(subprocess.TimeoutExpired):
        script(
            """
            import threading
            import qflow as qf

            def sticks(x):
                threading.Event().wait()

            def waits_for_ever():
                return list(qf.run(qf.process(sticks), [1]))

            waits_for_ever()
            """,
            timeout=5,
        )
    said = capsys.readouterr().out
    assert "in sticks" in said
    assert "in waits_for_ever" in said


@pytest.mark.parametrize("words", ["Exception ignored in: <x>", "There appear to be 1 leaked objects", "resource_tracker: x"])
def test_a_script_whose_standard_error_tells_of_a_leak_fails(words):
    assert script("import sys; sys.stderr.write('all is well')").stderr == "all is well"
    with pytest.raises(AssertionError, match=words):
        script(f"import sys; sys.stderr.write({words!r})")
