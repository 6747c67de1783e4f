"""A file that appears whole or not at all: written under a temporary name, and given its own once it is on the disk.

    .NAME.TOKEN.tmp   beside the file NAME, 16 random hex digits as TOKEN; locked by its writer while that lives

A process that is killed leaves its temporary behind, and whoever writes the same file next removes it: a temporary
that can be locked has no writer any more. (Ids of processes would not tell: each machine counts its own, and they are
used again.) Windows has no such locks, but removes no file that is open. On a filesystem without locks the temporaries
of killed processes stay: a living writer must not lose its own.

A symbolic link is written through: the file that it leads to is replaced, and the link stays. Nothing here knows packs.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # pyright: ignore[reportAssignmentType]

_TOKEN_BYTES = 8
_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# How filesystems say that they have no hard links, or that a folder cannot be synced.
_UNSUPPORTED = frozenset(
    {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}
)


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Find out, before hours of training, whether a file can be written.

    Nothing is left behind, and temporaries that killed processes left are removed.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: it is a folder itself.
        FileExistsError: it exists, and may not be overwritten.
        PermissionError: its folder is read-only.
        OSError: it is a device or a circle of links, or its folder cannot be written to for another reason.
    """
    path = Path(path)
    target = _prepare(path, overwrite)
    with _temporary_file(path, target, num_bytes=0):
        pass


@contextmanager
def replacing(path: str | os.PathLike[str], *, num_bytes: int, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Write a file that takes its name when the block ends, and never does when the block raises.

    Of two writers without ``overwrite`` the second is refused, also when both write at once; the one exception is a
    filesystem without hard links, between whose last look and renaming a file may appear. With ``overwrite`` the last
    one to finish wins.

    Args:
        path: the file.
        num_bytes: how long it becomes, for the message when the disk is full.
        overwrite: replace a file that is there.

    Yields:
        An empty file, open for writing.

    Raises:
        OSError: as ``check_writable``, or the disk is full.
    """
    path = Path(path)
    target = _prepare(path, overwrite)
    with _temporary_file(path, target, num_bytes) as (temporary, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()  # Windows renames no open file; elsewhere it stays locked until it has its name
        _publish(temporary, target, path, overwrite)
    _sync_folder(target.parent)


def _prepare(path: Path, overwrite: bool) -> Path:
    """Check the target, and clear away what killed writers of it left; gives the file that links lead to."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise OSError(f"{path} is a symbolic link that leads back to itself; remove it, or choose another -o")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; create it, then pack into {path}")
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'corpus.nvpack'}")
    _remove_abandoned(target)
    _check_target(target, path, overwrite)
    return target


def _check_target(target: Path, path: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_file():
        raise OSError(f"{path} is a device, pipe or socket, which a file must not replace; choose another -o")
    if not overwrite:
        raise _exists_already(path)


def _exists_already(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} exists already; --force (overwrite=True) replaces it")


@contextmanager
def _temporary_file(path: Path, target: Path, num_bytes: int) -> Iterator[tuple[Path, BinaryIO]]:
    """A new temporary of the target, locked; it is closed and, unless it got another name, removed in the end."""
    try:
        temporary, file = _create_temporary(target)
    except OSError as error:
        raise _explain(error, path, num_bytes) from error
    try:
        with file:
            yield temporary, file
    except OSError as error:
        if error.errno in _FULL:
            raise _explain(error, path, num_bytes) from error
        raise
    finally:
        with suppress(OSError):  # the first error counts, and the next run tries again
            temporary.unlink(missing_ok=True)


def _explain(error: OSError, path: Path, num_bytes: int) -> OSError:
    if error.errno in _FULL and num_bytes:
        return OSError(
            f"cannot write {path}: {error.strerror}; it takes {num_bytes} bytes; make room, or choose another -o"
        )
    kind = PermissionError if error.errno in _REFUSED else OSError
    return kind(f"cannot write to the folder of {path}: {error.strerror}; choose another -o")


def _create_temporary(target: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN_BYTES)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115
        # Until it was locked, another run may have taken it for abandoned. Nobody else makes a file of this name, so
        # one that is still there is this one.
        if _lock(file.fileno()) != "taken" and temporary.exists():
            return temporary, file
        file.close()
        temporary.unlink(missing_ok=True)


def _remove_abandoned(target: Path) -> None:
    """Remove the temporaries of a file that nobody is writing any more."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.tmp")
    try:
        names = os.listdir(target.parent)
    except OSError:  # a folder that may be written to, but not listed
        return
    for name in filter(pattern.fullmatch, names):
        with suppress(OSError):  # it is gone by now, or another user's
            _remove_if_abandoned(target.with_name(name))


def _remove_if_abandoned(temporary: Path) -> None:
    if fcntl is None:
        temporary.unlink()
        return
    # For writing, because NFS locks nothing else; a link of this name is nothing of ours, and no pipe may hold us up.
    descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if _lock(descriptor) == "ours":
            temporary.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(path: Path) -> Iterator[bool]:
    """Hold a file's lock until the block, or the process, ends; the file is made where it is not there, and stays.

    Whoever holds the lock may remove the file.

    Yields:
        Whether it is ours; also on a system without locks, where nothing keeps two apart.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        with open(path, "ab") as file:
            is_ours = _lock(file.fileno()) != "taken"
            if not is_ours or _is_at(path, file):
                yield is_ours
                return
            # Until it was locked, its last holder removed it: the next one to come would lock another file.


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether an open file still is the one of its name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> Literal["ours", "taken", "unsupported"]:
    """Lock a file until its descriptor is closed, or its process ends."""
    if fcntl is None:
        return "unsupported"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unsupported"
    return "ours"


def _publish(temporary: Path, target: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name."""
    _check_target(target, path, overwrite)  # writing, and the training before, took their time
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # never over a file that is there, where renaming would
    except FileExistsError:
        # A server whose answer got lost is asked again, and then meets its own link.
        if not os.path.samefile(temporary, target):
            raise _exists_already(path) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        os.rename(temporary, target)


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written to, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
