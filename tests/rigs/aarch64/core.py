"""Compilation of the C core for aarch64 with the flags and warnings of other builds."""

import shlex
import subprocess
from pathlib import Path

import build_cffi
from tests.rigs.aarch64.sysroot import COMPILER, headers, python


def compile_core(root: Path, checkout: Path) -> None:
    """Compile the core for the Python in `root` in a checkout, with warnings as errors.

    Raises:
        subprocess.CalledProcessError: If it fails; `stderr` has the reason.
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


def write_starter(root: Path, folder: Path) -> Path:
    """Write a program that starts the Python in `root`, for tests that start another one."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(python(root))} "$@"\n')
    program.chmod(0o755)
    return program
