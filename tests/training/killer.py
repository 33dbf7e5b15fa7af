"""A process that runs commands of the program in forks of itself and kills them at a chosen moment.

It has imported everything and computed nothing, so that a fork starts at once and inherits no threads. A request is one
line of JSON: "module:name.of.an.owner", method, number of the call, "before" or "after" it, changes of the environment,
words of the command line.
The answer is the exit status of the fork: -9 where it killed itself, as it should.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from typing import Any

import mlp_lab.cli.commands  # noqa: F401  (imported before the forks)
from mlp_lab.cli.main import main

LONGEST_SECONDS = 60


def kill_at(owner: str, method: str, call: int, when: str) -> None:
    """Lets this process kill itself (SIGKILL) before or after the given call of a method."""
    module, _, name = owner.partition(":")
    holder: Any = import_module(module)
    for part in filter(None, name.split(".")):
        holder = getattr(holder, part)
    real, calls = getattr(holder, method), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if when == "before" and calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if when == "after" and calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, method, counted)


def serve() -> None:
    for line in sys.stdin:
        *moment, environment, words = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ.update(environment)
            signal.alarm(LONGEST_SECONDS)
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            try:
                kill_at(*moment)
                main(words)
            finally:
                os._exit(99)  # it was never killed
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
