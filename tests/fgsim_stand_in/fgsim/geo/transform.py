"""Transform: one event to one graph."""

import numpy as np
import torch
from torch_geometric.data import Data


def transform(event):
    """The cells that were hit as nodes (energy, layer), each tied to the next one."""
    cells = np.argwhere(event["ECAL"] > 0.5)
    hits = event["ECAL"][tuple(cells.T)]
    nodes = torch.arange(len(hits))
    return Data(
        x=torch.from_numpy(np.column_stack([hits, cells[:, 2]]).astype(np.float32)),
        edge_index=torch.stack([nodes[:-1], nodes[1:]]),
        y=torch.from_numpy(np.atleast_1d(event["energy"]).copy()),
    )
