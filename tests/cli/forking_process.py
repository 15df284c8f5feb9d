"""A process that imports the program once, and forks for each call of it; see `program.Forks`."""

import atexit
import contextlib
import gc
import json
import os
import socket
import sys
import threading
from importlib import import_module
from typing import Final, NoReturn

from attestkit.__main__ import main

STREAMS: Final = 3
UNFLUSHED: Final = 120
"""Exit code of Python if it cannot flush stdout or stderr at its end."""


def answer_calls(connection: socket.socket) -> None:
    """Answer calls with exit codes until the connection ends.

    A call has the words, and the descriptors of the three standard streams. The first call of a
    command reports the imported modules, which this process then imports for later calls.
    """
    known: set[str] = set()
    while True:
        message, streams, _, _ = socket.recv_fds(connection, 1 << 20, STREAMS)
        if not message:
            return
        words: list[str] = json.loads(message)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            connection.close()
            os.close(reader)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            run_to_exit(words, writer)
        for descriptor in (writer, *streams):
            os.close(descriptor)
        with os.fdopen(reader, "rb") as report:
            imported = report.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        connection.send(str(code).encode())
        if words[0] not in known:
            known.add(words[0])
            for name in json.loads(imported or b"[]"):  # empty: a signal ended it
                with contextlib.suppress(ImportError):  # a name that a module has made
                    import_module(name)
            gc.freeze()


def run_to_exit(words: list[str], report: int) -> NoReturn:
    """Run the program, and exit as Python does, but without clearing all modules."""
    code: object = 1
    try:
        sys.argv[1:] = words
        try:
            sys.exit(main())
        except SystemExit as stop:
            code = stop.code
        except BaseException:  # noqa: BLE001 - as at the end of a program
            sys.excepthook(*sys.exc_info())
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with os.fdopen(report, "w") as file:
            json.dump([*sys.modules], file)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = UNFLUSHED
    finally:
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    answer_calls(socket.socket(fileno=int(sys.argv[1])))
