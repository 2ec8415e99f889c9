"""Engines: the ways to run a plan; each is one file, loaded on first use."""

from __future__ import annotations

from qflow.graph.run import register

register("processes", "qflow.engines.processes")
register("serial", "qflow.engines.serial")
