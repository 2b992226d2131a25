"""Writing files so that nothing is ever half written, and the per-user cache directory."""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is renamed over `path`, on failure it is removed.

    Raises UserError when the disk is full: the old file, if any, is still whole. (torch.save says so in a RuntimeError
    without a number.)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield tmp
        with open(tmp, "rb+") as f:
            os.fsync(f.fileno())  # without it a power cut can leave the new name on an empty file
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:
        numbered = isinstance(e, OSError)
        full = e.errno == errno.ENOSPC if numbered else shutil.disk_usage(path.parent).free < 2**20
        if not full:
            raise
        raise UserError(
            f"no space left on disk while writing {path}: the previous version was kept; free some space and resume"
        ) from e
    finally:
        tmp.unlink(missing_ok=True)


def cache_dir() -> Path:
    """Per-user directory for what can be rebuilt at any time: compiled operators, token ids."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "future-seed"
