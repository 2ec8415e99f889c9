"""Installed: qflow as its users have it, with its bytecode beside it.

The peers are installed, and compiled since then. A checkout in an environment that writes no bytecode
(``PYTHONDONTWRITEBYTECODE``) is compiled anew by every process, 0.1 s each time, which no user waits for.
"""

from __future__ import annotations

import compileall
import shutil
from pathlib import Path

import qflow


def compiled(folder: Path) -> list[str]:
    """What stands first on the path of measured interpreters: nothing, or a copy in this folder, if qflow has no bytecode."""
    spec = qflow.__spec__
    if spec is None or spec.cached is None or Path(spec.cached).exists():
        return []
    shutil.copytree(Path(qflow.__file__).parent, folder / "qflow", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder, quiet=2)
    return [str(folder)]
