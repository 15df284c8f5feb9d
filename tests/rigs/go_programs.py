"""Programs in Go, built from the sources that Debian packages."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.rigs.apt import cache_folder

SOURCES: Final = Path("/usr/share/gocode")


def missing_for_go(*packages: tuple[str, str]) -> str:
    """Return why programs cannot be built, or an empty string.

    Args:
        packages: Paths of Go packages, and the Debian packages that have them.
    """
    if shutil.which("go") is None:
        return "go is missing (Debian: apt install golang-go)"
    for path, package in packages:
        if not (SOURCES / "src" / path).exists():
            return f"{path} is missing (Debian: apt install {package})"
    return ""


def build_go(program: Path, *sources: str, embedded: Mapping[str, Path] | None = None) -> None:
    """Build a program from files or a package; its packages are cached for others.

    Args:
        program: The file to write.
        sources: Files, or a package.
        embedded: Files by their path below `src`, which Debian's packages lack.
    """
    overlay = program.with_suffix(".overlay")
    replaced = {str(SOURCES / "src" / path): str(file) for path, file in (embedded or {}).items()}
    overlay.write_text(json.dumps({"Replace": replaced}))
    subprocess.run(
        ["go", "build", "-overlay", str(overlay), "-o", str(program), *sources],
        env={
            **os.environ,
            "GOPATH": str(SOURCES),
            "GO111MODULE": "off",
            "GOCACHE": str(cache_folder() / "go"),
            "GOFLAGS": "",
            "GOTOOLCHAIN": "local",
        },
        check=True,
        timeout=600,
    )
