"""The one exception that means 'your input', and the words it is told in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

INTERRUPTED = 130  # a shell's status for SIGINT: 128 + 2
TERMINATED = 143  # and for SIGTERM: 128 + 15


class UserError(ValueError):
    """A mistake in a config, a file or a flag: one line that names the key, the value and what would be accepted.

    The command line prints it without a traceback and exits with status 2.
    """


class NonFiniteError(RuntimeError):
    """A NaN or an infinity has stopped training; its message is one line that says where it was first seen.

    The command line prints it without a traceback and exits with status 3. Nothing non-finite is ever written to a
    checkpoint.

    Args:
        message: One line.
        found: The `mlp_lab.diagnostics.scan.NonFinite` that it tells of, where that is known.
    """

    exit_status = 3

    def __init__(self, message: str, found: object | None = None) -> None:
        super().__init__(message)
        self.found = found


class NotSavedError(RuntimeError):
    """A file of a run could not be written, for example because the disk is full.

    The command line prints it without a traceback and exits with status 5.
    """

    exit_status = 5


class Terminated(BaseException):
    """A signal has ended the command, as Ctrl-C ends it by a `KeyboardInterrupt`; no `except Exception` catches it.

    Args:
        signum: The signal.
        message: One line for the user.
        requeued: Whether the cluster starts the command again.
    """

    def __init__(self, signum: int, message: str = "terminated", *, requeued: bool = False) -> None:
        super().__init__(message)
        self.signum, self.requeued = signum, requeued

    @property
    def exit_status(self) -> int:
        """0 where the cluster starts the command again, else the status for SIGTERM."""
        return 0 if self.requeued else TERMINATED


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and those that it followed from, outermost first; a chain that leads back to itself ends.

    >>> [str(cause) for cause in causes(ValueError("alone"))]
    ['alone']
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def nearest(name: str, accepted: Iterable[str]) -> str | None:
    """Returns the entry of `accepted` that `name` most likely meant, or None.

    >>> nearest("rellu", ["relu", "tanh"])
    'relu'
    """
    matches = get_close_matches(name, list(accepted), n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown(key: str, value: object, accepted: Iterable[str]) -> UserError:
    """Builds the error for a `value` that `key` does not know, with the nearest of the `accepted` ones.

    >>> str(unknown("model.activation", "rellu", ["relu", "tanh"]))
    "model.activation: 'rellu' is unknown (did you mean 'relu'?); accepted: relu, tanh"
    """
    names = list(accepted)
    guess = nearest(str(value), names)
    hint = f" (did you mean {guess!r}?)" if guess else ""
    return UserError(f"{key}: {value!r} is unknown{hint}; accepted: {', '.join(names)}")
