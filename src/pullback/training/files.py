"""Files that are whole or not there: a kill at any moment leaves the old content or the new, never a part."""

import os
from pathlib import Path


def partial_of(path: Path) -> Path:
    """Where the new content of a file lies while it is being written; a kill may leave it behind."""
    return path.with_name(f".{path.name}.partial")


def write_atomically(path: Path, content: bytes) -> None:
    """Put content into a file.

    It goes into another file of the same directory first, and down to the disk, before it takes the name.

    Raises OSError if that cannot be done; the old file then stands as it was.
    """
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Have the new name on the disk too, where directories can be opened for that."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
