"""If the core cannot be compiled, the package is built without it, with a warning."""

import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi")

from cffi import VerificationError
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import build_cffi
from tests.untyped import untyped


class App:
    """A stand-in for hatchling's application object."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        """Record the warning."""
        self.warnings.append(message)


def built() -> tuple[list[str], dict[str, Any]]:
    """Run the hook; return its warnings and the build data."""
    app: Any = App()
    root = str(build_cffi.ROOT)
    metadata: ProjectMetadata[Any] = ProjectMetadata(root, PluginManager())
    hook = build_cffi.CustomBuildHook(root, {}, untyped(None), metadata, root, "wheel", app)
    build_data: dict[str, Any] = {"artifacts": [], "sbom_files": []}
    hook.initialize("standard", build_data)
    [sbom] = build_data.pop("sbom_files")
    assert not any(
        part["name"] == "attestkit-core"
        for part in json.loads(Path(sbom).read_text())["components"]
    )
    hook.finalize("standard", build_data, "")
    assert not Path(sbom).exists()
    warnings: list[str] = app.warnings
    return warnings, build_data


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent compilation in tests, which would write a core into the tree."""
    monkeypatch.setenv("CC", "/bin/false")
    monkeypatch.delenv("ATTESTKIT_STRICT_BUILD", raising=False)
    monkeypatch.delenv("ATTESTKIT_PURE_PYTHON", raising=False)


def test_build_without_compiler_is_pure() -> None:
    """Without a compiler, there is one warning and a pure wheel."""
    [warning], build_data = built()
    assert warning.startswith("no compiled core (")
    assert warning.endswith("): plain Python")
    assert "\n" not in warning
    assert build_data == {"artifacts": []}


def test_pure_build_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATTESTKIT_PURE_PYTHON=1 skips the compilation."""
    monkeypatch.setenv("ATTESTKIT_PURE_PYTHON", "1")
    assert built() == (["no compiled core: ATTESTKIT_PURE_PYTHON=1"], {"artifacts": []})


def test_strict_build_fails_without_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ATTESTKIT_STRICT_BUILD=1 an error or a warning of the compiler fails the build."""
    monkeypatch.setenv("ATTESTKIT_STRICT_BUILD", "1")
    with pytest.raises(VerificationError):
        built()
    assert "-Werror" in build_cffi.compiler_flags()


def test_ci_variable_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI=true, which is set in users' pipelines too, changes nothing."""
    monkeypatch.setenv("CI", "true")
    [warning], build_data = built()
    assert warning.startswith("no compiled core (")
    assert build_data == {"artifacts": []}
    assert "-Werror" not in build_cffi.compiler_flags()


def test_other_python_gets_pure_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without CPython's stable ABI gets a pure wheel, as pip would refuse the other."""
    with monkeypatch.context() as patch:
        patch.setattr(sys.implementation, "name", "pypy")
        [warning], build_data = built()
    assert warning == "no compiled core (pypy has not CPython's stable ABI): plain Python"
    assert build_data == {"artifacts": []}
    threaded = {**sysconfig.get_config_vars(), "Py_GIL_DISABLED": 1}
    monkeypatch.setattr(sysconfig, "get_config_var", threaded.get)
    [warning], build_data = built()
    assert warning.startswith("no compiled core (a Python without the GIL has not")
    assert build_data == {"artifacts": []}


def test_source_list_matches_files() -> None:
    """The list of C files matches the existing ones."""
    folder = Path(build_cffi.ROOT, build_cffi.NATIVE)
    there = {path.name for path in folder.glob("*.c")} - {"_lib.c"}
    assert sorted(build_cffi.SOURCES) == sorted(there)
