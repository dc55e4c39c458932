"""Writing so that a file is whole or absent, whatever is killed when. Checkpoints and artefacts."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from ktrdr_api.errors import CheckpointError, TemporaryError

TEMPORARY_PREFIX: Final = ".tmp-"
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file: after a crash it has the old content or the new one.

    The bytes are on the disk before the name is, and the name before this returns.

    Raises:
        OSError: As the system says; see `writing`.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file would fill a full volume for good
        raise
    sync_folder(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until its bytes are on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the folder's names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours, with the path and the remedy.

    Raises:
        CheckpointError: The folder may not be written by this user.
        TemporaryError: The volume is full, or failed.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FORBIDDEN:
            raise CheckpointError(
                f"{where}: {error.strerror}; the output volume must be writable for user "
                f"{os.getuid()}: mount it read-write, or set its fsGroup"
            ) from error
        remedy = (
            "free space on the output volume, or enlarge it"
            if error.errno in {errno.ENOSPC, errno.EDQUOT}
            else "check the output volume"
        )
        raise TemporaryError(f"{where}: {error.strerror or error}; {remedy}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """As `writing`, for a volume that cannot be read.

    Raises:
        TemporaryError: The volume failed.
    """
    try:
        yield
    except OSError as error:
        raise TemporaryError(
            f"{error.filename or path}: {error.strerror or error}; check the output volume"
        ) from error


def digest(content: bytes) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def rfc3339(time: datetime) -> str:
    """UTC, whole seconds, written Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
