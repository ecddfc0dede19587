"""The directory in which `pullback` keeps what it may use again, and whether only this user could have written it."""

import os
import stat
import tempfile
from pathlib import Path


def cache_directory() -> Path:
    """`$PULLBACK_CACHE`, or `pullback` in the user's cache directory; without a home, among temporary files."""
    given, caches = os.environ.get("PULLBACK_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if given or caches:
        return Path(given) if given else Path(str(caches)) / "pullback"
    try:
        return Path.home() / ".cache" / "pullback"
    except RuntimeError:  # such as a container's user who is but a number
        return Path(tempfile.gettempdir()) / f"pullback-{os.getuid()}"


def is_private(path: Path) -> bool:
    """Whether only this user could have written what lies there.  Raises OSError where nothing does."""
    status = path.lstat()
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return own and stat.S_IMODE(status.st_mode) & 0o022 == 0 and not stat.S_ISLNK(status.st_mode)
