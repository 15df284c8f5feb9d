"""Tests of the wheel's SBOM: CycloneDX, reproducible for equal trees."""

import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")

from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

import build_cffi
import build_sbom
from tests.processes import run_program
from tests.supply_chain.locks import ROOT
from tests.untyped import untyped

PROJECT = build_sbom.Project(
    "attestkit",
    "1.2.3",
    "a package",
    ("cffi>=1.17", "tomli>=2; python_version < '3.11'"),
    {"cli": ("jinja2>=3.1", "CFFI"), "all": ("attestkit[cli]",), "dev": ("ruff",)},
)


def document(**environ: str) -> dict[str, Any]:
    """Return the SBOM of a project of two files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SOURCE_DATE_EPOCH", raising=False)
        for name, value in environ.items():
            patch.setenv(name, value)
        files = [ROOT / "attestkit/_native/hex.c", ROOT / "attestkit/_native/ak.h"]
        found: dict[str, Any] = json.loads(build_sbom.sbom(PROJECT, files, root=ROOT))
        return found


def test_sbom_dependencies_have_range_and_extra() -> None:
    """Required overrides optional, development tools are omitted, own extras are expanded."""
    parts = document()["components"][1:]
    assert [(part["purl"], part["scope"]) for part in parts] == [
        ("pkg:pypi/cffi", "required"),
        ("pkg:pypi/jinja2", "optional"),
        ("pkg:pypi/tomli", "required"),
    ]
    assert parts[2]["properties"] == [
        {"name": "attestkit:requirement", "value": '>=2; python_version < "3.11"'}
    ]
    assert {"name": "attestkit:extra", "value": "cli"} in parts[1]["properties"]


def test_sbom_lists_files_with_hashes() -> None:
    """Each compiled file is listed with its SHA-256, in a fixed order."""
    core = document()["components"][0]
    digest = hashlib.sha256((ROOT / "attestkit/_native/hex.c").read_bytes()).hexdigest()
    assert [part["name"] for part in core["components"]] == [
        "attestkit/_native/ak.h",
        "attestkit/_native/hex.c",
    ]
    assert core["components"][1]["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_sbom_time_is_source_date_epoch() -> None:
    """Without SOURCE_DATE_EPOCH the SBOM has no time, and is reproducible."""
    assert "timestamp" not in document()["metadata"]
    assert document() == document()
    sbom = document(SOURCE_DATE_EPOCH="1700000000")
    assert sbom["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert sbom["serialNumber"] != document()["serialNumber"]


def create_sbom_of_tree() -> bytes:
    """Return the SBOM of a wheel of this tree, with its core."""
    root = str(ROOT)
    metadata: ProjectMetadata[Any] = ProjectMetadata(root, PluginManager())
    hook = build_cffi.CustomBuildHook(root, {}, untyped(None), metadata, root, "wheel", None)
    return hook.bill(build_cffi.files_of_core())


def test_sbom_lists_every_file_of_core() -> None:
    """Every source file that the compiler reads is listed."""
    core = json.loads(create_sbom_of_tree())["components"][0]
    native = ROOT / build_cffi.NATIVE
    there = {path for suffix in ("c", "h", "inc") for path in native.glob(f"*.{suffix}")}
    names = {path.relative_to(ROOT).as_posix() for path in there if path.name != "_lib.c"}
    assert {part["name"] for part in core["components"]} == names


@pytest.mark.slow  # the schema takes seconds to load
def test_sbom_is_valid_cyclonedx() -> None:
    """The official schema of CycloneDX 1.6 accepts the SBOM, and rejects invalid ones."""
    reason = "pip install 'cyclonedx-python-lib[json-validation]'"
    schema = pytest.importorskip("cyclonedx.schema", reason=reason)
    validation = pytest.importorskip("cyclonedx.validation.json", reason=reason)
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    text = create_sbom_of_tree().decode()
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"SHA-256"', '"SHA-255"', 1)) is not None
    assert validator.validate_str(text.replace('"purl"', '"url"', 1)) is not None


@pytest.mark.slow
def test_wheel_contains_sbom(tmp_path: Path) -> None:
    """The SBOM is at its path of PEP 770 and in RECORD; two builds are identical."""
    found = []
    for name in ("one", "two"):
        words = ["hatchling", "build", "-t", "wheel", "-d", str(tmp_path / name)]
        done = run_program(
            sys.executable, "-m", *words, cwd=ROOT, env={**os.environ, "ATTESTKIT_PURE_PYTHON": "1"}
        )
        assert done.returncode == 0, done.stderr
        [wheel] = (tmp_path / name).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            [path] = [path for path in archive.namelist() if path.endswith(build_sbom.NAME)]
            record = path.split("/")[0] + "/RECORD"
            found.append(archive.read(path))
            assert path.split("/")[0].endswith(".dist-info")
            assert path.split("/")[1:] == ["sboms", build_sbom.NAME]
            assert f"{path},sha256=" in archive.read(record).decode()
        assert json.loads(found[0])["metadata"]["component"]["name"] == "attestkit"
    assert found[0] == found[1]
