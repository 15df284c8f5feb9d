"""The C core, compiled for aarch64 with the flags and the warnings of every other build."""

import shlex
import subprocess
from pathlib import Path

import build_cffi
from tests.rigs.aarch64.sysroot import COMPILER, headers, python


def compile_core(root: Path, checkout: Path) -> None:
    """Compile the core for the Python in `root`, into a checkout; a warning is an error.

    Raises:
        subprocess.CalledProcessError: It does not compile; `stderr` says why.
    """
    native = checkout / build_cffi.NATIVE
    build_cffi.ffi_builder().emit_c_code(str(native / "_lib.c"))
    command = [COMPILER, f"--sysroot={root}", "-isystem", str(headers(root)), "-I."]
    command += [*build_cffi.FLAGS, "-Werror", "-shared", "-fPIC", "-o", build_cffi.TARGET]
    subprocess.run(
        [*command, "_lib.c", *build_cffi.SOURCES],
        cwd=native,
        capture_output=True,
        text=True,
        check=True,
    )


def starter(root: Path, folder: Path) -> Path:
    """Write a program that starts the Python in `root`, for tests that start another one."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(python(root))} "$@"\n')
    program.chmod(0o755)
    return program
