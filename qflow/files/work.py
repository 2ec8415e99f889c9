"""Work: where an output is written before it is one, and the moment at which it becomes one.

    outdir/.qflow-<host>-<process>-<start>-<random>/<worker>/ngc1_bmp.fits      being written
    outdir/ngc1_bmp.fits                                                        all of it, by one rename

The folder is that of a run, and goes with it. If its process was killed, whoever looks next removes it, on the same host since
it booted, where processes have the same numbers; a worker that still lives then finds no folder to write to, and can't replace
what a later run has written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from qflow.disk import sync
from qflow.files.names import MARK, above, digest

CLAIMS = "claims"
INPUT, FOLDER = "an input", "a folder in which other files of the run lie"  # who claims, beside items


class Place:
    """The folder of a run in the folder of its outputs."""

    def __init__(self, folder: str) -> None:
        sweep(folder)
        self.path = os.path.join(folder, f"{owner(os.getpid())}{uuid.uuid4().hex[:8]}")
        os.mkdir(self.path)
        self._gone = weakref.finalize(self, _remove, os.path.abspath(self.path), os.getpid())

    def ended(self, run: Any, whole: bool) -> None:
        """The run is over."""
        self._gone()


def _remove(folder: str, process: int) -> None:
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def written(place: str | None, path: str) -> Iterator[str]:
    """A path of the same name as an output's, in a folder where nobody else writes.

    In the place of a run; if that is on another device, or there is none, beside the output.
    """
    if place is None or not _near(place, path):
        folder = tempfile.mkdtemp(prefix=owner(os.getpid()), dir=os.path.dirname(path) or os.curdir)
        try:
            yield os.path.join(folder, os.path.basename(path))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = os.path.join(place, f"{os.getpid()}-{threading.get_ident()}")
    if folder not in _made:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        _made[folder] = None
        while len(_made) > _MOST:
            _made.pop(next(iter(_made)))
    try:
        yield os.path.join(folder, os.path.basename(path))
    except BaseException:
        _made.pop(folder, None)
        shutil.rmtree(folder, ignore_errors=True)
        raise


_made: dict[str, None] = {}  # folders of workers
_MOST = 100


def _near(place: str, path: str) -> bool:
    """Whether what is written in a place can be renamed to a path."""
    one, other = os.path.dirname(place), os.path.dirname(path)
    return one == other or os.stat(one or os.curdir).st_dev == os.stat(other or os.curdir).st_dev


def commit(source: str, path: str, check: Callable[[str], None], *, fsync: bool = False) -> str:
    """Give what was written its name -> the path of the output, whose name is that of the file that is there.

    Args:
        source: the path at which it was to be written.
        path: of the output.
        check: raises for a path of another name that may not be written to.
        fsync: it is on the disk before anything else happens.
    Raises:
        ValueError: nothing was written, or several files of which none has the name that was asked for.
    """
    work, name = os.path.split(source)
    found = os.listdir(work)
    if not found:
        raise ValueError(f"The function that writes has written nothing to the path that it was given, of {path!r}.")
    if name not in found and len(found) > 1:
        raise ValueError(f"The function that writes was given the name {name!r}, but has written {', '.join(map(repr, found))}.")
    found.sort(key=lambda each: each == name)  # that one last
    folder = os.path.dirname(path)
    for each in found:
        if each != name:
            check(os.path.join(folder, each))
    for each in found:
        _move(os.path.join(work, each), os.path.join(folder, each), fsync)
    if fsync:
        for each in (folder or os.curdir, *above(os.path.abspath(folder))):  # those, too, that were made for it
            with contextlib.suppress(PermissionError):
                sync(each)
    return os.path.join(folder, found[-1])


def _move(source: str, target: str, fsync: bool) -> None:
    if fsync:
        for base, _, names in os.walk(source):
            for name in names:
                sync(os.path.join(base, name))
        sync(source)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:  # as between two mounts of one device
            with tempfile.TemporaryDirectory(prefix=owner(os.getpid()), dir=os.path.dirname(target) or os.curdir) as near:
                shutil.move(source, near)
                _move(os.path.join(near, os.path.basename(source)), target, fsync)
        elif os.path.isdir(source) and os.path.isdir(target) and not os.path.islink(target):
            _exchange(source, target)
        else:
            raise


def _exchange(source: str, target: str) -> None:
    """Put a folder in place of another, at once where the system can; else the old one is never without a name of its own.

    Source: rename(2), ``RENAME_EXCHANGE``, which local file systems have.
    """
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    with contextlib.suppress(AttributeError):
        if not ctypes.CDLL(None).renameat2(here, os.fsencode(source), here, os.fsencode(target), both):
            shutil.rmtree(source, ignore_errors=True)
            return
    old = f"{target}.replaced-{uuid.uuid4().hex[:8]}"
    os.rename(target, old)
    os.rename(source, target)
    shutil.rmtree(old, ignore_errors=True)


def owner(process: int) -> str:
    """With what the names of a process's folders begin."""
    return f"{MARK}{_host()}-{process}-{_begun(process)}-"


@cache
def _host() -> str:
    """This host since it booted, and the numbers that processes have here, as part of a name of a file."""
    name = "".join(each if each.isalnum() else "_" for each in socket.gethostname())
    known = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        known = f"{file.read()} {os.readlink('/proc/self/ns/pid')}"
    return f"{name}_{digest(known):016x}"


def _begun(process: int) -> str:
    """When a process began, in ticks since the host did; nothing where there is none."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{process}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19].decode()
    return ""


def sweep(folder: str) -> None:
    """Remove what processes of this host have left in a folder that are no longer there."""
    mine = f"{MARK}{_host()}-"
    with contextlib.suppress(OSError):
        for each in os.scandir(folder or os.curdir):
            if each.name.startswith(mine):
                process, _, rest = each.name.removeprefix(mine).partition("-")
                if process.isdigit() and rest.partition("-")[0] != _begun(int(process)):
                    shutil.rmtree(each.path, ignore_errors=True)


def claim(place: str, path: str, who: str) -> str | None:
    """Claim a path for an item, in the place of the run -> who has it, if that is another one.

    Whoever is repeated has it already.
    """
    if (place, path, who) in _claimed:
        return None
    link = os.path.join(place, CLAIMS, f"{digest(path):016x}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(link))
    other = _put(link, who)
    if other != who:
        return other
    if who == FOLDER:  # which many have
        _claimed[place, path, who] = None
        while len(_claimed) > _MOST:
            _claimed.pop(next(iter(_claimed)))
    return None


def _put(link: str, who: str) -> str:
    """Have a text at a path, if nothing is there -> what is there. A link has it at once; some file systems have no links."""
    try:
        os.symlink(who, link)
    except FileExistsError:
        return os.readlink(link) if os.path.islink(link) else _text(link)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        with contextlib.suppress(FileExistsError), open(link, "xb") as file:
            file.write(os.fsencode(who))
        return _text(link)
    return who


def _text(path: str) -> str:
    """What was put there; nothing is if whoever did it was killed meanwhile."""
    with open(path, "rb") as file:
        return os.fsdecode(file.read()) or "another input"


_claimed: dict[tuple[str, str, str], None] = {}
