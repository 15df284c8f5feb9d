"""The record of the last compatibility run covers the versions that pyproject.toml allows."""

import json
import re
import sys

from tests.long_runs.records import RECORDS, ROOT
from tests.matrix.record import add_sessions

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


def test_all_apis_of_agents_were_run() -> None:
    """There is a session for each mount point, and for each release of its clients."""
    noxfile = (ROOT / "noxfile.py").read_text()
    record = json.loads((RECORDS / "matrix.json").read_text())
    found = {
        (one["name"], one["args"].get("api"), one["args"].get("release"))
        for one in record["sessions"]
    }
    wanted: set[tuple[str, str | None, str | None]] = {
        ("dstack_v1", "/v1", None),
        *(("own_client", api, None) for api in ("/", "/v0", "/v1")),
    }
    clients = (
        ("dstack_sdk", "PYTHON_CLIENTS", ("/", "/v0", "/prpc")),
        ("dstack_sdk_own_tests", "PYTHON_CLIENTS", (None,)),
        ("dstack_sdk_js", "JS_CLIENTS", ("/", "/prpc")),
    )
    for session, constant, apis in clients:
        [releases] = re.findall(rf"^{constant}: Final = (.+)$", noxfile, re.MULTILINE)
        for release in re.findall(r"[\d.]{5,}", releases):
            wanted |= {(session, api, release) for api in apis}
    assert wanted <= found


def test_part_of_a_run_replaces_its_sessions() -> None:
    """A session that is run again replaces its result at the same place; others stay."""
    sessions = [
        {"signatures": [name, name[:-2]], "result": result}
        for name, result in (("a-1", "success"), ("a-2", "failed"), ("b-1", "success"))
    ]
    again, new = ({"signatures": [name], "result": "success"} for name in ("a-2", "c-1"))
    failed = {"result": 0, "sessions": sessions}
    assert add_sessions(failed, {"result": 1, "sessions": [again, new]}) == {
        "result": 1,
        "sessions": [sessions[0], again, sessions[2], new],
    }
    assert add_sessions(failed, {"result": 1, "sessions": [new]})["result"] == 0


def test_named_tests_exist() -> None:
    """Each test file and folder that noxfile.py names exists."""
    named = re.findall(r'"(tests/[\w/.]+)"', (ROOT / "noxfile.py").read_text())
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
