"""``python -m qflow.train.imagenet``."""

import signal
import sys

from qflow.train.imagenet.command import main

if __name__ == "__main__":
    # torchrun ends its ranks by SIGTERM, and the folder of the tiles goes with them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
