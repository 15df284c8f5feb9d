"""The record of the last compatibility run covers the versions that pyproject.toml allows."""

import json
import re
import sys

from tests.long_runs.records import RECORDS, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_all_supported_pythons_and_extras_were_run() -> None:
    """Each session succeeded, and there is one for each Python and each extra."""
    record = json.loads((RECORDS / "matrix.json").read_text())
    results = {
        signature: session["result"]
        for session in record["sessions"]
        for signature in session["signatures"]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [
        classifier.split()[-1]
        for classifier in project["classifiers"]
        if classifier.startswith("Programming Language :: Python :: 3.")
    ]
    extras = project["optional-dependencies"].keys() - {"dev"}
    wanted = {f"{name}-{python}" for name in ("newest", "oldest") for python in pythons}
    wanted |= {f"extras-{python}(extra='{extra}')" for python in pythons for extra in extras}
    assert wanted <= results.keys()
    assert set(results.values()) == {"success"}
    recorded = {session["args"].get("extra", "none") for session in record["sessions"]}
    assert recorded == extras | {"none"}  # "none": without any


def test_named_tests_exist() -> None:
    """Each test file and folder that noxfile.py names exists."""
    named = re.findall(r'"(tests/[\w/.]+)"', (ROOT / "noxfile.py").read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
