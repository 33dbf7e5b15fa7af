"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PARTIAL = ".*.partial"
"""Pattern of the names that files have while they are written; a killed process leaves such files behind."""


@contextmanager
def whole_file(
    path: Path, *, binary: bool = False, sync: bool = False, mode: int = 0o666, former: Path | None = None
) -> Iterator[IO[Any]]:
    """Opens a new file beside `path`, and renames it to `path` when the block ends without an exception.

    The new file has a name that nobody can know before, and is never a link: in a folder from another person, a link
    planted at a known name would send the content elsewhere.

    Args:
        path: The file; its former content stays until the new one is complete.
        binary: Write bytes, not UTF-8 text with line ends as they are given.
        sync: Flush the file to the disk before it is renamed, and then its new name, so that both outlive a power
            failure.
        mode: Permissions, before the umask.
        former: Where the former content of `path` is kept; None keeps none.

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
        if former is not None and path.exists():
            _keep(path, former)
        os.replace(partial, path)
        if sync:
            _sync_folder(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _keep(path: Path, former: Path) -> None:
    """Gives a file a second name, which it keeps when its first name is given to another file."""
    link = former.with_name(f".{former.name}.{secrets.token_hex(4)}.partial")
    try:
        os.link(path, link)
        os.replace(link, former)
    except OSError:  # a file system without hard links
        os.replace(path, former)
    finally:
        link.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
