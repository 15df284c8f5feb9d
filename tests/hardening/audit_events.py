"""Run a module as a program, and record Python's audit events.

    python audit_events.py FILE MODULE ARGUMENT...

FILE gets a line for each distinct event: its name, the module that raised it, and its subject. The
events (PEP 578) are those of starting programs, creating code, decoding data that may contain code,
loading libraries, and connecting to other machines. A program cannot disable them.
"""

import json
import os
import runpy
import sys
from types import CodeType

WATCHED = frozenset(
    {
        *("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
        *("os.startfile", "os.system", "pty.spawn"),
        *("compile", "exec"),
        *("marshal.load", "marshal.loads", "pickle.find_class"),
        *("ctypes.dlopen", "ctypes.dlsym"),
        *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"),
        *("http.client.connect", "urllib.Request", "smtplib.connect", "ftplib.connect"),
    }
)


def _caller() -> str:
    """Return the module that raised the event; frame 0 is this function, 1 the hook."""
    frame = sys._getframe(2)
    return str(frame.f_globals.get("__name__", "?"))


def _get_subject(event: str, arguments: tuple[object, ...]) -> str:
    """Return the subject of an event."""
    first = arguments[0] if arguments else None
    if event in ("compile", "exec"):
        name = first.co_filename if isinstance(first, CodeType) else arguments[1]
        return "file" if str(name).startswith("/") else "text"
    if event in ("socket.connect", "socket.sendto"):
        return repr(arguments[1])
    if event.startswith("marshal."):
        return ""
    if event == "ctypes.dlsym":
        return str(arguments[1])
    return repr(first)


def main() -> None:
    """Run the module under the hook."""
    path, module, *arguments = sys.argv[1:]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    seen: set[tuple[str, str, str]] = set()

    def hook(event: str, values: tuple[object, ...]) -> None:
        if event not in WATCHED:
            return
        found = (event, _caller(), _get_subject(event, values))
        if found not in seen:
            seen.add(found)
            os.write(descriptor, json.dumps(found).encode() + b"\n")

    sys.argv[:] = [module, *arguments]
    sys.addaudithook(hook)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
