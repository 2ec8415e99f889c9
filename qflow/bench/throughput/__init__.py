"""Throughput: qflow's defaults beside its peers at their best, ``python -m qflow.bench``.

A workload is a few pure functions; a peer is a function that runs them; one measurement is one workload, one peer and
one setting in a fresh interpreter. The first turn tries every setting of the grid and watches memory; the turns after
it measure the best setting of each system, one system after the other.

    workloads --jobs--> peers --results--> tally (right? all? in order?) --> figures --> table, goals, JSON, plot

Nothing here loads numpy or a peer before it is needed: the time to the first item counts what importing costs.
"""
