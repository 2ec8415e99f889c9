"""Peers: qflow, the serial loop and all others, by name; a new one is a file beside this one and a line here."""

from __future__ import annotations

import importlib

from qflow.bench.throughput.peer import Peer
from qflow.bench.throughput.peers import grain, joblib, mpire, nodes, pool, qflow, ray, serial, spdl, torch

PEERS: dict[str, Peer] = {
    "qflow": qflow.PEER,
    "serial": serial.PEER,
    "torch": torch.PEER,
    "torch_batched": torch.BY_HAND,
    "nodes": nodes.PEER,
    "nodes_threads": nodes.THREADS,
    "spdl_threads": spdl.THREADS,
    "spdl_pool": spdl.PROCESSES,
    "spdl_subprocess": spdl.SUBPROCESS,
    "grain": grain.PEER,
    "mpire": mpire.PEER,
    "pool": pool.PLAIN,
    "pool_chunked": pool.BY_HAND,
    "joblib": joblib.PEER,
    "ray": ray.PEER,
}
OWN = ("qflow", "serial")  # they are always measured


def peer_of(name: str) -> Peer:
    """A peer by its name here, or any `Peer` by ``module:attribute``.

    >>> peer_of("torch").title
    'torch DataLoader'

    Raises:
        KeyError: there is no peer of that name.
    """
    if ":" not in name:
        return PEERS[name]
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
