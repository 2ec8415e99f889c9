"""Batch stack: graphs of a batch, layer by layer."""


def split_layer_subgraphs(batch):
    """The batch with only those edges that stay in one layer."""
    start, end = batch.edge_index
    batch.edge_index = batch.edge_index[:, batch.x[start, 1] == batch.x[end, 1]]
    return batch
