"""Random flows over tables in an MPI job: what all ranks write together beside what one of them writes alone.

mpiexec -n R python -m mpi4py mpi_flows.py FOLDER EXAMPLES      (`test_mpi` starts it)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mpi4py import MPI  # type: ignore[import-not-found,unused-ignore]
from test_h5_flows import HIT, flows_
from test_mpi import content

from qflow import h5

WORLD = MPI.COMM_WORLD
FOLDER, EXAMPLES = Path(sys.argv[1]), int(sys.argv[2])
tried = 0


@settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate])  # the same in all ranks
@given(
    parts=flows_(),
    size=st.integers(1, 9),
    ids=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    compression=st.sampled_from([None, "gzip"]),
    dropped=st.booleans(),
)
def same(parts, size, ids, compression, dropped):
    global tried
    tried += 1
    flow = h5.rows("hits", size=size)
    for part in parts:
        flow = flow | part
    words = {"engine": "serial", "compression": compression, "drop": ["t0"] if dropped else [], "exists": "overwrite"}
    if WORLD.Get_rank() == 0:
        with h5.Tables(FOLDER / "in.h5", "w") as file:
            file.append("hits", np.array([(number, 0) for number in ids], HIT))
        h5.run(flow, FOLDER / "in.h5", FOLDER / "one.h5", shard=(0, 1), **words)
    WORLD.Barrier()
    h5.run(flow, FOLDER / "in.h5", FOLDER / "out.h5", driver="mpio", **words)
    WORLD.Barrier()  # all have closed the input
    found = content(FOLDER / "out.h5") == content(FOLDER / "one.h5") if WORLD.Get_rank() == 0 else None
    assert WORLD.bcast(found)


if __name__ == "__main__":
    same()
    print(f"{tried} examples")
