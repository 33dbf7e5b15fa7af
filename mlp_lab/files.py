"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PARTIAL = ".*.partial"
"""Pattern of the names that files have while they are written; a killed process leaves such files behind."""


@contextmanager
def whole_file(path: Path, *, binary: bool = False, sync: bool = False, mode: int = 0o666) -> Iterator[IO[Any]]:
    """Opens a new file beside `path`, and renames it to `path` when the block ends without an exception.

    The new file has a name that nobody can know before, and is never a link: in a folder from another person, a link
    planted at a known name would send the content elsewhere.

    Args:
        path: The file; its former content stays until the new one is complete.
        binary: Write bytes, not UTF-8 text with line ends as they are given.
        sync: Flush to the disk before the file is renamed.
        mode: Permissions, before the umask.

    Raises:
        OSError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(partial, flags, mode)
    try:
        with (
            open(descriptor, "wb")
            if binary
            else open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="")  # bytes of a path stay
        ) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
