"""Build the compiled core: the cffi builder and, around it, a hatchling build hook.

Where it cannot be compiled, or with `ATTESTKIT_PURE_PYTHON=1`, the package is built without it
and works in plain Python with the same results. pip hides what a build prints, so
`attestkit doctor` says which core runs and why. With `ATTESTKIT_STRICT_BUILD=1`, for those who
work on the core or give it to others, a warning of the compiler is an error, and so is a core that
does not compile. `CI` is not asked: those who install a package in continuous integration want one
that works.

The library holds nothing of where, when or by whom it was built, so that the same sources, headers
and compiler give the same bytes; build_dist.py makes what is given to others from it.

`python build_cffi.py` compiles it into the tree. With `ATTESTKIT_SANITIZE=1` it gets the address
and undefined-behaviour sanitizers, whose runtime must be there before Python's own allocator:

    ATTESTKIT_SANITIZE=1 python build_cffi.py
    export LD_PRELOAD="$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0
    PYTHONMALLOC=malloc python -m pytest tests/native tests/test_quote.py
"""

import os
import shutil
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from cffi import FFI, VerificationError
from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # hatchling loads this file by its path, and not its neighbours

import build_sbom  # noqa: E402 - see above

NATIVE = "attestkit/_native"
TARGET = "_lib.abi3.so"

# By name: a glob would also link whatever else lies there.
SOURCES = [
    "agent_json.c",
    "agent_object.c",
    "cbor_check.c",
    "cbor_object.c",
    "columns_object.c",
    "cpu.c",
    "event_object.c",
    "evidence_cmw.c",
    "evidence_msgpack.c",
    "evidence_object.c",
    "evidence_scale.c",
    "hex.c",
    "json.c",
    "json_depth.c",
    "pck_certificate.c",
    "pck_object.c",
    "quote.c",
    "quote_columns.c",
    "quote_object.c",
    "keccak.c",
    "sha256.c",
    "tcg_log.c",
    "log_object.c",
    "objects.c",
    "replay_object.c",
    "hash_object.c",
    "rtmr_replay.c",
    "sha384.c",
    "sha512_portable.c",
    "sha512_avx2.c",
    "sha512_avx512.c",
]
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-fvisibility=hidden"]
# Threads with little stack (musl gives 128 kB) end at a guard page, which no frame may step over.
FLAGS += ["-fstack-protector-strong"]
if sys.platform == "linux":
    FLAGS += ["-fstack-clash-protection"]  # which Apple's compiler warns that it does not know
# Python's own flags ask for debug information, which is nine tenths of the library and has the
# names of this machine's folders in it. Function names stay.
PLAIN = "-g0"
FRAMES = "-Wframe-larger-than=16384"  # bytes; of sanitizers' frames nobody knows
# cffi drops the GIL around every call. Ours take microseconds: dropping it takes a fifth of the
# time a quote takes, and with other threads around a race to get it back, which takes several
# times that. What may take long drops it by itself, in agent_object.c and replay_object.c.
PREAMBLE = """
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }
#include "ak.h"
"""
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover"]


def is_strict() -> bool:
    """Tell whether a warning, and a core that does not compile, ends the build."""
    return os.environ.get("ATTESTKIT_STRICT_BUILD") == "1"


def why_not_here() -> str | None:
    """Return why this Python cannot load the core, or None.

    The core is of CPython's stable ABI. A wheel that says so and was made for another Python is
    one that pip refuses after it was built.
    """
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} has not CPython's stable ABI"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "a Python without the GIL has not the stable ABI"
    return None


def sanitizers() -> list[str]:
    """Return the flags of the sanitizers, where they are asked for."""
    return SANITIZE if os.environ.get("ATTESTKIT_SANITIZE") == "1" else []


def compiler_flags() -> list[str]:
    """Return what the compiler is told beyond what Python's own build was told."""
    strict = ["-Werror"] if is_strict() else []
    return [*FLAGS, *(sanitizers() or [PLAIN, FRAMES]), *strict]


def ffi_builder() -> FFI:
    """Return the builder of `attestkit._native._lib`, from the declarations the C files share."""
    ffi = FFI()
    ffi.cdef((ROOT / NATIVE / "ak_api.cdef.h").read_text())
    ffi.set_source(
        "attestkit._native._lib",
        PREAMBLE,
        sources=[f"{NATIVE}/{name}" for name in SOURCES],
        include_dirs=[NATIVE],
        extra_compile_args=compiler_flags(),
        extra_link_args=sanitizers(),
    )
    return ffi


def files_of_core() -> list[Path]:
    """Return every file that the core is compiled from, with the headers."""
    folder = ROOT / NATIVE
    headers = [*folder.glob("*.h"), *folder.glob("*.inc")]
    return [*(folder / name for name in SOURCES), *headers]


def compile_core() -> Path:
    """Compile the core and put it into the tree; return where it is.

    It is compiled elsewhere, so that no object files stay behind, and so that setuptools, which
    compiles it, finds no pyproject.toml to have opinions about.

    Raises:
        VerificationError: there is no C compiler, or it refuses the code.
    """
    with TemporaryDirectory() as work:
        leftovers = shutil.ignore_patterns("__pycache__", "_lib.c", "*.o", "*.so*")
        shutil.copytree(ROOT / NATIVE, Path(work, NATIVE), ignore=leftovers)
        built = ffi_builder().compile(tmpdir=work, target=TARGET)
        # Onto a new inode: a Python that has the old library mapped keeps it whole.
        fresh = ROOT / NATIVE / f".{TARGET}.{os.getpid()}"
        shutil.copy(built, fresh)
    return fresh.replace(ROOT / NATIVE / TARGET)


class CustomBuildHook(BuildHookInterface[BuilderConfig]):
    """Compile the core into the wheel, or leave a plain-Python wheel; add its bill of materials."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add `_lib.abi3.so` to the build; say in one line why there is none."""
        compiled = self._compile()
        if compiled:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"cp310-abi3-{platform}"
            build_data["artifacts"].append(f"{NATIVE}/{TARGET}")
        if version == "standard":  # what an editable one is made of changes after the build
            self._sbom = Path(mkdtemp(prefix="attestkit"), build_sbom.NAME)
            self._sbom.write_bytes(self.bill(files_of_core() if compiled else []))
            build_data["sbom_files"].append(str(self._sbom))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the wheel now has."""
        del build_data, artifact_path  # are handed to every hook
        if version == "standard":
            shutil.rmtree(self._sbom.parent)

    def _compile(self) -> bool:
        if os.environ.get("ATTESTKIT_PURE_PYTHON") == "1":
            self.app.display_warning("no compiled core: ATTESTKIT_PURE_PYTHON=1")
            return False
        if reason := why_not_here():
            self.app.display_warning(f"no compiled core ({reason}): plain Python")
            return False
        try:
            compile_core()
        except VerificationError as error:
            if is_strict():
                raise
            self.app.display_warning(f"no compiled core ({error}): plain Python")
            return False
        return True

    def bill(self, files: list[Path]) -> bytes:
        """Return the bill of materials of a wheel with a core of these `files`."""
        about = self.metadata.core
        extras = {name: tuple(texts) for name, texts in about.optional_dependencies.items()}
        project = build_sbom.Project(
            about.name, self.metadata.version, about.description, tuple(about.dependencies), extras
        )
        return build_sbom.sbom(project, files, root=ROOT)


if __name__ == "__main__":
    print(compile_core())
