"""Compilation of the stub driver libraries."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from attestkit.errors import BackendError, BackendUnavailableError

SOURCES: Final = Path(__file__).parent
FLAGS: Final = ("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# File of each library, and the names by which programs load it: by the loader, and by `ld`.
_LIBRARIES: Final = (
    ("nvml_stub.c", "libnvidia-ml.so.1", "libnvidia-ml.so"),
    ("nscq_stub.c", "libnvidia-nscq.so.2", "libnvidia-nscq.so"),
)
_TIME_LIMIT: Final = 120.0  # seconds


def build_stub_libraries(folder: Path) -> None:
    """Compile the stub libraries into a folder, with the compiler of `$CC`, by default `cc`.

    Warnings are errors with `ATTESTKIT_STRICT_BUILD=1`.

    Raises:
        BackendUnavailableError: If there is no C compiler.
        BackendError: If a library cannot be compiled.
    """
    compiler = find_compiler()
    strict = ("-Werror",) if os.environ.get("ATTESTKIT_STRICT_BUILD") == "1" else ()
    for source, library, link in _LIBRARIES:
        command = (
            *(compiler, *FLAGS, *strict, "-shared", f"-Wl,-soname,{library}"),
            *("-o", str(folder / library)),
            *(str(SOURCES / name) for name in (source, "stub_client.c")),
            "-ldl",  # before glibc 2.34, for dladdr
        )
        _compile(command, library)
        (folder / link).symlink_to(library)


def find_compiler() -> str:
    """Return the path of the C compiler; raise BackendUnavailableError without one."""
    name = os.environ.get("CC") or "cc"
    if found := shutil.which(name):
        return found
    text = f"C compiler: {name} not found; install one for simulated GPUs (Debian: apt install gcc)"
    raise BackendUnavailableError(text, reason="missing_dependency")


def _compile(command: tuple[str, ...], library: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the compiler that the user configured
            command, capture_output=True, text=True, timeout=_TIME_LIMIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"{library}: cannot be compiled: {error}", reason="io_error") from error
    if done.returncode:
        why = "; ".join(done.stderr.split("\n")[:3]).strip("; ")
        raise BackendError(f"{library}: cannot be compiled: {why}", reason="io_error")
