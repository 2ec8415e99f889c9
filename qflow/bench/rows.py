"""Rows: all there are, by name."""

from __future__ import annotations

from qflow.bench.fault_rows import FAULTS
from qflow.bench.payload_rows import PAYLOADS
from qflow.bench.row import Row

CONTROL = "none"  # the row without a fault
ROWS: dict[str, Row] = FAULTS | PAYLOADS
