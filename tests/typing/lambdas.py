"""Lambdas are Any where nothing says what they take. (Pyright wants a type there: write a function for it.)"""

from __future__ import annotations

import qflow as qf

print(
    range(3) | qf.process(lambda number: number + 1) | qf.pool(n=2)(lambda number: number * 2) | qf.map(lambda text: text.upper())
)
