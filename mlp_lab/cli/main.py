"""The command table: what `python -m mlp_lab` can do. Nothing heavy is imported before a command is chosen."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from mlp_lab.cli.streams import any_encoding
from mlp_lab.errors import INTERRUPTED, NonFiniteError, NotSavedError, Terminated, UserError, nearest
from mlp_lab.program import program
from mlp_lab.text import printable

COMMANDS = {
    "fit": "Train an MLP from a config, or go on with a run (--resume RUN_DIR).",
    "validate": "Measure a run on its validation rows (--run RUN_DIR).",
    "test": "Measure a run on its test rows (--run RUN_DIR).",
    "predict": "Write the predictions for the test rows or for new rows (--run RUN_DIR --data.path FILE).",
    "summary": "Show the layers, shapes, parameters, FLOPs and memory of a config's model.",
    "sweep": "Search the keys of a config (--config SWEEP.yaml), and keep every trial.",
}
USAGE_ERROR = 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def usage() -> str:
    """Returns the help text of the program."""
    start = program()
    rows = "\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items())
    return (
        f"usage: {start} COMMAND [--config FILE.yaml ...] [--KEY VALUE ...]\n\n"
        "A research bench for multilayer perceptrons.\n\n"
        f"commands:\n{rows}\n\n"
        "options:\n  --help      Show this text; after a command, its keys.\n  --version   Show the version.\n"
        "  --trust     With --run or --resume: import the code that the run's config names.\n\n"
        "examples:\n"
        f"  {start} fit --config configs/digits.yaml --model.depth 4\n"
        f"  {start} test --run runs/digits/latest\n"
        f"  {start} fit --config configs/tabular.yaml --data.path my.csv --data.target price\n"
        f"  {start} sweep --config sweeps/digits.yaml --trials 64\n"
    )


def import_from_here() -> None:
    """Lets a config name code that lies in the working directory, as `python -m` does and a console script does not."""
    here = os.getcwd()
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    0; 2 for a mistake in the input; 3 where a NaN or an infinity has stopped training; 5 where a state could not be
    saved, such as on a full disk; 130 after Ctrl-C; 143 after SIGTERM or SIGUSR1, unless Slurm has put the job back
    into its queue.

    `MLP_LAB_DEBUG=1` lets exceptions through with their traceback.
    """
    if argv is None:
        import_from_here()
    with any_encoding():
        return _run(_decoded(sys.argv[1:]) if argv is None else list(argv))


def _decoded(words: Sequence[str]) -> list[str]:
    """Reads the words as UTF-8 where the locale's encoding could not: they name columns and classes of UTF-8 files."""
    return [os.fsencode(word).decode("utf-8", "surrogateescape") for word in words]


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(f"mlp_lab {version('mlp_lab')}")
        return 0
    try:
        if command not in COMMANDS:
            guess = nearest(command, COMMANDS)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise UserError(f"{command!r} is not a command{hint} (accepted: {', '.join(COMMANDS)})")
        if command == "sweep":
            from mlp_lab.cli.sweep import sweep

            sweep(arguments[1:])
        else:
            from mlp_lab.training.signals import TerminationSignals

            with TerminationSignals() as signals:
                from mlp_lab.cli.commands import run

                run(command, arguments[1:], signals)
    except SystemExit as stop:  # a command's --help
        if stop.code:
            raise
    except KeyboardInterrupt as error:
        print(f"interrupted{'; ' if str(error) else ''}{printable(str(error))}", file=sys.stderr)
        return INTERRUPTED
    except Terminated as error:
        if _launched():  # the first process waits for it, and would be killed at another status
            return 0
        print(printable(str(error)), file=sys.stderr)
        return error.exit_status
    except Exception as error:
        if os.environ.get("MLP_LAB_DEBUG") == "1":
            raise
        if isinstance(error, NonFiniteError):
            if _launched():
                return 0
            print(f"stopped: {printable(str(error))}", file=sys.stderr)
            return error.exit_status
        from mlp_lab.cli.mistakes import one_line

        line = str(error) if isinstance(error, UserError | NotSavedError) else one_line(error)
        if line is None:
            raise
        print(f"error: {printable(line)}", file=sys.stderr)
        return NotSavedError.exit_status if _is_unsaved(error) else USAGE_ERROR
    return 0


def _is_unsaved(error: Exception) -> bool:
    from mlp_lab.cli.mistakes import is_database_full

    full = isinstance(error, OSError) and error.errno in DISK_FULL
    return full or isinstance(error, NotSavedError) or is_database_full(error)


def _launched() -> bool:
    """Says whether another process has started this one for a training in several, and speaks for it."""
    return os.environ.get("LOCAL_RANK", "0") != "0"
