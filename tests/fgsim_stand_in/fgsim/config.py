"""Config: where the data lie and how they are read; the folder comes from the environment variable FGSIM_FOLDER."""

import os
from types import SimpleNamespace

_folder = os.environ["FGSIM_FOLDER"]

conf = SimpleNamespace(
    path=SimpleNamespace(dataset=_folder, ds_lenghts=os.path.join(_folder, "filelengths.yaml")),
    yvar="energy",
    loader=SimpleNamespace(
        keylist=["ECAL", "energy"],
        chunksize=10,
        batch_size=4,
        prefetch_batches=2,
        num_workers_transform=3,
        num_workers_stack=2,
        # The names of the second copy of the document.
        chunk_size=10,
        n_workers_transform=3,
        n_workers_stack=2,
    ),
)
