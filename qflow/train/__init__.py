"""What a training loop needs around a flow.

loader = qf.train.Loader(source | pipe, seed=0)
for epoch in range(3):
    for batch in loader: ...
"""

from qflow.train.loader import Loader as Loader

__all__ = ["Loader"]
