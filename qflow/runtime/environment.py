"""Environment: what workers find around them, and which calls of the kernel they can rely on.

A worker must not take itself for a rank: an MPI library that is imported with the launcher's variables
joins the job a second time, and the job hangs (Open MPI 4.1.4). Nor must n workers start n x cores threads.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qflow.errors import GraphError

# Of Open MPI, its runtime and PMIx; of MPICH, Intel MPI and Hydra; of Slurm's own PMI. torchrun's RANK and
# Slurm's SLURM_PROCID are plain numbers that steps may want to read.
LAUNCHER = ("OMPI_", "OPAL_", "PMIX_", "PMI_", "PRTE_", "ORTE_", "MPIR_", "MPI_LOCAL", "I_MPI_", "HYDRA_", "HYDI_", "SLURM_PMI")

# The variables that limit the threads of native libraries, and the libraries that read each: all but their own read OMP's.
_THREADS = {
    "OMP_NUM_THREADS": ("openmp", "openblas", "mkl", "blis"),
    "OPENBLAS_NUM_THREADS": ("openblas",),
    "MKL_NUM_THREADS": ("mkl",),
    "BLIS_NUM_THREADS": ("blis",),
    "NUMEXPR_NUM_THREADS": (),
    "VECLIB_MAXIMUM_THREADS": (),
}

_HANDLES = ("_io", "io", "sqlite3", "socket", "_socket", "h5py._hl", "h5py.h5")  # modules whose objects have a place or state

_LACKING = {
    "memfd": (
        logging.INFO,
        "memfd is missing here: shared memory lies in unlinked files in /dev/shm or the temporary folder.",
    ),
    "pidfd": (logging.INFO, "pidfd is missing here: the end of a worker is seen by the end of a pipe."),
    "prctl": (
        logging.WARNING,
        "prctl is missing here: a worker that is stuck in C code may outlive this process if that is killed by SIGKILL.",
    ),
    "membarrier": (logging.INFO, "membarrier is missing here: every value pays for the fence that else those pay who wait."),
}


def for_workers(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that workers get: no launcher's, and one thread for each library that the user has not set.

    >>> for_workers({"PMI_RANK": "1", "RANK": "1", "MKL_NUM_THREADS": "2"})["MKL_NUM_THREADS"]
    '2'

    Nor does mpi4py begin MPI as soon as it is imported, as an h5py with MPI does: Open MPI starts a daemon for a process that
    nobody launched, which outlives a worker. A step that needs MPI calls ``MPI.Init()``, or the user sets the variable.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith(LAUNCHER)}
    # Who sets OMP's means all that read it.
    meant = () if "OMP_NUM_THREADS" not in kept else ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
    return {"MPI4PY_RC_INITIALIZE": "0", **{name: "1" for name in _THREADS if name not in meant}, **kept}


def take_over(environment: Mapping[str, str]) -> None:
    """Make these the variables of this process."""
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def limit_threads(environment: Mapping[str, str]) -> None:
    """One thread for the libraries that are loaded already, in a copy of a process; what the user has set stays."""
    chosen = {library for name, libraries in _THREADS.items() if name in environment for library in libraries}
    torch = sys.modules.get("torch")
    if torch is not None and "openmp" not in chosen and "mkl" not in chosen:
        torch.set_num_threads(1)
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return
    limits = {pool["prefix"]: 1 for pool in threadpoolctl.threadpool_info() if pool["internal_api"] not in chosen}
    threadpoolctl.threadpool_limits(limits=limits)


def check_copyable() -> None:
    """Whether a copy of this process can work: CUDA can't."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise GraphError(
            "CUDA is initialised in this process, and a copy of it can't use CUDA. "
            "Leave `start='fork'` away, or use the GPU only after the workers were started."
        )


def handles(values: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Of named values, the open files, connections and sockets: a copy of this process would share their place and state."""
    for name, value in values:
        ours = any(value is stream for stream in (sys.stdin, sys.stdout, sys.stderr))
        harmless = isinstance(value, type | io.BytesIO | io.StringIO | Exception)
        if type(value).__module__.startswith(_HANDLES) and not ours and not harmless:
            yield name, value


def lacking() -> frozenset[str]:
    """Which of memfd, pidfd, prctl and membarrier are missing or refused here; each is logged once.

    For tests, ``QFLOW_WITHOUT="memfd,prctl"`` takes them away.
    """
    if not _found:
        forced = os.environ.get("QFLOW_WITHOUT", "").split(",")
        know_lacking(frozenset(call for call, probe in _PROBES.items() if call in forced or not probe()))
        for call in sorted(_found[0]):
            logging.getLogger("qflow").log(*_LACKING[call])
    return _found[0]


def know_lacking(calls: frozenset[str]) -> None:
    """Take over what the parent has found, without a word."""
    _found[:] = [calls]


_found: list[frozenset[str]] = []


def _memfd() -> bool:
    try:
        os.close(os.memfd_create("qflow-probe", os.MFD_CLOEXEC))
    except (AttributeError, OSError):
        return False
    return True


def _pidfd() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _prctl() -> bool:
    signum = ctypes.c_int()
    try:
        return bool(ctypes.CDLL(None).prctl(2, ctypes.byref(signum)) == 0)  # PR_GET_PDEATHSIG
    except AttributeError:
        return False


def _membarrier() -> bool:
    if platform.machine() != "x86_64":
        return False
    try:
        return bool(ctypes.CDLL(None).syscall(324, 0, 0, 0) & 6 == 6)  # MEMBARRIER_CMD_QUERY: GLOBAL_EXPEDITED, and to register
    except AttributeError:
        return False


_PROBES = {"memfd": _memfd, "pidfd": _pidfd, "prctl": _prctl, "membarrier": _membarrier}
