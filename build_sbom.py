"""The wheel's bill of materials: CycloneDX 1.6 in JSON, put under `.dist-info/sboms/` (PEP 770).

It names what goes into the wheel and what the wheel asks for: every C file that is compiled, with
its SHA-256, and every dependency with the range that pyproject.toml allows. Which versions run is
decided where it is installed; those of continuous integration are in requirements/ci.lock.

The same tree gives the same bytes: there is no clock in it but SOURCE_DATE_EPOCH, and the serial
number is a hash of the rest.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "attestkit.cdx.json"
LICENCE = "Apache-2.0"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_OID, "the bill of materials of attestkit")
_Json = dict[str, Any]


class Project(NamedTuple):
    """What pyproject.toml says of the package.

    Attributes:
        dependencies: Requirements (PEP 508) of every installation.
        extras: Those of each extra, by its name.
    """

    name: str
    version: str
    description: str
    dependencies: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]]


def sbom(project: Project, sources: Iterable[Path], *, root: Path) -> bytes:
    """Return the document.

    Args:
        project: What is built.
        sources: Files under `root` that are compiled, headers too; none for a plain-Python wheel.
        root: What paths are told from.

    Raises:
        ValueError: SOURCE_DATE_EPOCH is no number of seconds.
    """
    ref = f"pkg:pypi/{project.name}@{project.version}"
    files = [_file(path, root) for path in sorted(sources)]
    wanted = _wanted(project)
    core = [_core(project, files)] if files else []
    document: _Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            **_timestamp(),
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "library",
                "bom-ref": ref,
                "name": project.name,
                "version": project.version,
                "description": project.description,
                "licenses": [{"license": {"id": LICENCE}}],
                "purl": ref,
            },
        },
        "components": [*core, *wanted],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(part["bom-ref"] for part in [*core, *wanted])},
        ],
    }
    text = json.dumps(document, sort_keys=True)
    document["serialNumber"] = uuid.uuid5(_NAMESPACE, text).urn
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _timestamp() -> _Json:
    """Return the time of the build where it is told, as reproducible builds do it."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return {}
    return {"timestamp": datetime.fromtimestamp(int(epoch), timezone.utc).isoformat()}


def _file(path: Path, root: Path) -> _Json:
    name = path.relative_to(root).as_posix()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"license": {"id": LICENCE}}],
    }


def _core(project: Project, files: list[_Json]) -> _Json:
    """Return the compiled core, made of `files`: our own code, no copies of others'."""
    purl = f"pkg:generic/{project.name}-core@{project.version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": f"{project.name}-core",
        "version": project.version,
        "description": "The compiled core, in C",
        "licenses": [{"license": {"id": LICENCE}}],
        "purl": purl,
        "components": files,
    }


def _wanted(project: Project) -> list[_Json]:
    """Return the dependencies, a package once; `required` wins over the extras that want it too."""
    extras: dict[str, set[str]] = {}
    asked: dict[str, set[str]] = {}
    needed = set()
    groups = [("", project.dependencies), *project.extras.items()]
    for extra, texts in groups:
        for text in texts:
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            if extra == "dev" or name == project.name:  # tools; an extra made of other extras
                continue
            condition = f"; {requirement.marker}" if requirement.marker else ""
            asked.setdefault(name, set()).add(f"{requirement.specifier}{condition}")
            if extra:
                extras.setdefault(name, set()).add(extra)
            else:
                needed.add(name)
    return [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}",
            "name": name,
            "purl": f"pkg:pypi/{name}",
            "scope": "required" if name in needed else "optional",
            "properties": [
                *_properties("attestkit:requirement", asked[name]),
                *_properties("attestkit:extra", extras.get(name, ())),
            ],
        }
        for name in sorted(asked)
    ]


def _properties(name: str, values: Iterable[str]) -> list[_Json]:
    return [{"name": name, "value": value} for value in sorted(values)]
