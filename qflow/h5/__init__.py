"""HDF5: chunks of rows for training; tables that refer to each other, and flows over these.

    files --chunks--> ((file, start, stop), ...) --read--> [{key: row}, ...]  or  {key: rows}

Planning opens each file once and keeps only its length; a chunk is a small tuple, so a list of
chunks can be shuffled, split, pickled and compared. Files are opened where they are read.

    chunks = h5.chunks("data/*.h5", 1024)
    train, validation, test = h5.split(chunks, validation=0.1, test=0.1)
    pipe = h5.read(["image", "label"], n=4) | transform | qf.repack(64) | collate

A file of tables is a `Tables`. A flow over tables goes from one such file to another, in slices:

    flow = h5.rows("hits") | h5.need(tracks="hits -> tracks") | calibrate | h5.append("calib", refs="1:1")
    h5.run(flow, "events.h5", "calibrated.h5", n=8)

or, where it ends with `h5.values()`, into what comes behind it: batches for training.
"""

from qflow.h5.inputs import need, rows
from qflow.h5.outputs import append, linked, stage
from qflow.h5.planning import Chunk, Chunks, Part, chunks
from qflow.h5.reading import read
from qflow.h5.references import dereference, dereference_chain
from qflow.h5.running import Summary, run
from qflow.h5.splitting import Split, split
from qflow.h5.tables import Tables
from qflow.h5.values import values

__all__ = [
    "Chunk",
    "Chunks",
    "Part",
    "Split",
    "Summary",
    "Tables",
    "append",
    "chunks",
    "dereference",
    "dereference_chain",
    "linked",
    "need",
    "read",
    "rows",
    "run",
    "split",
    "stage",
    "values",
]
