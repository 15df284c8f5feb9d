"""Run attestkit with other Pythons, dependencies, clients and frameworks: `make matrix`.

Each session is an environment with a wheel of this tree; the tests are a copy without the package.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

import nox

ROOT: Final = Path(__file__).resolve().parent
PROJECT: Final = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
PYTHONS: Final = nox.project.python_versions({"project": PROJECT})
ENDS: Final = (PYTHONS[0], PYTHONS[-1])
EXTRAS: Final = [name for name in PROJECT["optional-dependencies"] if name not in ("all", "dev")]
# pycryptodome: another Keccak, with which tests compare ours.
TOOLS: Final = (
    "pytest>=9",
    "pytest-asyncio",
    "hypothesis",
    "httpx",
    "jsonschema-rs",
    "pycryptodome",
)
# Official clients, all releases since 0.5.0, the newest last.
PYTHON_CLIENTS: Final = ("0.5.0", "0.5.1", "0.5.2", "0.5.3", "0.5.4")
JS_CLIENTS: Final = ("0.5.5", "0.5.7", "0.5.8")
FRAMEWORKS: Final = {  # the oldest version and the newest, with its tests
    "starlette": ("0.40.0", "tests/matrix/test_frameworks.py"),
    "fastapi": ("0.115.0", "tests/matrix/test_frameworks.py"),
    "httpx": ("0.27.0", "tests/ra_tls/test_http.py"),
}
# Tests that use every dependency, some seconds each.
TESTS: Final = (
    *("tests/native/test_native.py", "tests/attestation/wire/test_v1_cbor.py", "tests/formats"),
    *("tests/crypto/test_ecdsa.py", "tests/crypto/test_ed25519.py", "tests/crypto/test_hashes.py"),
    *("tests/keys/test_signatures.py", "tests/dstack/test_env_encryption.py"),
    *("tests/ra_tls/test_certificate.py", "tests/verifier/policy/toml/test_reader.py"),
    "tests/verifier/dcap/test_engine.py",
    *("tests/serve/http/test_protocol.py", "tests/serve/http/test_server.py"),
    *("tests/serve/rpc/test_json_codec.py", "tests/serve/rpc/test_event_log_json.py"),
    *("tests/serve/rpc/test_protobuf_codec.py", "tests/serve/docker/test_engine.py"),
    *("tests/serve/pages/test_dashboard.py", "tests/serve/metrics/test_agent.py"),
    *("tests/serve/server_log/test_log.py", "tests/collateral/test_http_getter.py"),
    *("tests/serve/test_machine_info.py", "tests/cli/test_schemas.py"),
    *("tests/cli/commands/test_mount.py", "tests/cli/commands/test_verify_many.py"),
)
CORE_TESTS: Final = ("tests/native/test_native.py", "tests/test_quote.py", "tests/event_log")

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True
# Directories of uv and of the Pythons that pyenv installed.
places = [Path(sys.executable).parent, *Path.home().glob(".pyenv/versions/3.*/bin")]
os.environ["PATH"] = os.pathsep.join([*map(str, places), os.environ["PATH"]])


@cache
def build() -> Path:
    """Build the wheel of this tree, once a run."""
    folder = ROOT / ".matrix" / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        ["uv", "build", "--quiet", "--wheel", "--out-dir", str(folder)], cwd=ROOT, check=True
    )
    [wheel] = folder.glob("*.whl")
    return wheel


def wheel(extras: str = "all") -> str:
    """Return the requirement of this tree's wheel."""
    return f"attestkit[{extras}] @ {build().as_uri()}"


def install(session: nox.Session, *requirements: str, oldest: bool = False) -> None:
    """Install wheels only: the newest versions, or of the requirements the oldest allowed ones."""
    resolution = "lowest-direct" if oldest else "highest"
    session.install("--only-binary", ":all:", "--resolution", resolution, *requirements)


def copy_tests(session: nox.Session) -> Path:
    """Copy the tests without the package, and make the copy the current folder."""
    place = Path(session.create_tmp()).resolve() / "tree"
    shutil.rmtree(place, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "node_modules", ".*")
    for name in ("tests", "docs"):
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, place)
    shared = place.parent / "shared"
    if (ROOT.parent / "shared").exists() and not shared.exists():
        shared.symlink_to(ROOT.parent / "shared")
    session.cd(place)
    return place


def run_tests(session: nox.Session, *paths: str, slow: bool = False, **environ: str) -> None:
    """Run tests of the current folder, with few examples of each property."""
    environ |= {"ATTESTKIT_MOST_EXAMPLES": "5", "PYTHONPATH": ""}
    options = ("-q", "-p", "no:cacheprovider", "-p", "tests.rigs.few_examples")
    marks = ("-m", "not rig and not hardware" if slow else "not slow and not rig and not hardware")
    session.run("python", "-m", "pytest", *options, *marks, *paths, env=environ)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """Run tests with all dependencies at their newest."""
    install(session, wheel(), *TOOLS)
    copy_tests(session)
    run_tests(session, *TESTS)


@nox.session(python=PYTHONS)
def oldest(session: nox.Session) -> None:
    """Run tests with all dependencies at the oldest version that is allowed."""
    extras = PROJECT["optional-dependencies"]
    wanted = [each for name in EXTRAS for each in extras[name]]
    install(session, *PROJECT["dependencies"], *wanted, oldest=True)
    install(session, wheel(), *TOOLS)
    copy_tests(session)
    run_tests(session, *TESTS)


@nox.session(python=ENDS)
def plain_python(session: nox.Session) -> None:
    """Run the tests of the C core on the plain Python core."""
    install(session, wheel(), *TOOLS)
    copy_tests(session)
    run_tests(session, *CORE_TESTS, ATTESTKIT_PURE_PYTHON="1")


@nox.session(python=PYTHONS)
@nox.parametrize("extra", ["none", *EXTRAS, "all"])
def extras(session: nox.Session, extra: str) -> None:
    """Check the features of an extra, and that errors name missing ones."""
    some = {"none": [], "all": EXTRAS}.get(extra, [extra])
    install(session, wheel(",".join(some)))
    session.run("uv", "pip", "check", external=True)
    session.cd(session.create_tmp())
    session.run("python", str(ROOT / "tests/packaging/installed.py"), "compiled", *some)


@nox.session(python=ENDS)
@nox.parametrize("name", list(FRAMEWORKS))
def frameworks(session: nox.Session, name: str) -> None:
    """Run RA-TLS with a framework: its oldest version on the oldest Python, else its newest."""
    version, path = FRAMEWORKS[name]
    wanted = f"{name}=={version}" if session.python == ENDS[0] else name
    install(session, wheel(), wanted, *(tool for tool in TOOLS if tool != name))
    copy_tests(session)
    run_tests(session, path)


@nox.session(python=ENDS)
def pytest_plugin(session: nox.Session) -> None:
    """Run a project that uses the plugin's fixtures, with pytest 7.4 and with the newest."""
    install(session, wheel(), "pytest==7.4.0" if session.python == ENDS[0] else "pytest")
    place = Path(session.create_tmp()) / "project"
    shutil.copytree(ROOT / "tests/sample_project", place, dirs_exist_ok=True)
    session.cd(place)
    session.run("python", "-m", "pytest", "-q")


@nox.session(python="3.11")
@nox.parametrize("release", PYTHON_CLIENTS)
@nox.parametrize("api", ["/", "/v0", "/prpc"])  # the last: Tappd
def dstack_sdk(session: nox.Session, api: str, release: str) -> None:
    """Run the tests of the official Python client with a release of it, on a mount point."""
    install(session, wheel(), f"dstack-sdk[all]=={release}", *TOOLS)
    copy_tests(session)
    chosen = {"/": "not _v0 and not tappd", "/v0": "_v0", "/prpc": "tappd"}[api]
    run_tests(session, "tests/clients/test_dstack_sdk.py", "-k", chosen, slow=True)


@nox.session(python="3.11")
@nox.parametrize("release", PYTHON_CLIENTS)
def dstack_sdk_own_tests(session: nox.Session, release: str) -> None:
    """Run the tests in the source package of a release of the official Python client.

    Those of 0.5.4 require that a simulator refuses EmitEvent, those before that it has it.
    """
    extra = ("pip", "setuptools", "mypy", "evidence-api")
    install(session, wheel(), f"dstack-sdk[all]=={release}", *TOOLS, *extra)
    folder = Path(session.create_tmp()).resolve()
    copy_tests(session)
    source = ("--no-deps", "--no-binary", ":all:", "--dest", str(folder), f"dstack-sdk=={release}")
    session.run("python", "-m", "pip", "download", "--quiet", *source)
    package = str(folder / f"dstack_sdk-{release}.tar.gz")
    options = ("--emit-event", "removed") if release == "0.5.4" else ()
    words = ("python", "-m", "tests.clients.own_tests", package, *options)
    session.run(*words, env={"PYTHONPATH": ""})


@nox.session(python="3.11")
@nox.parametrize("release", JS_CLIENTS)
@nox.parametrize("api", ["/", "/prpc"])  # not /v0: a path in its URL is ignored
def dstack_sdk_js(session: nox.Session, api: str, release: str) -> None:
    """Run the tests of the official JavaScript client with a release of it, on a mount point."""
    install(session, wheel(), *TOOLS)
    folder = copy_tests(session) / "tests/clients/js"
    manifest = json.loads((folder / "package.json").read_text())
    manifest["dependencies"]["@phala/dstack-sdk"] = release
    (folder / "package.json").write_text(json.dumps(manifest))
    (folder / "package-lock.json").unlink()
    quiet = ("--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts")
    session.run("npm", "install", "--prefix", str(folder), *quiet, external=True)
    chosen = "tappd" if api == "/prpc" else "not tappd"
    old = {} if release == JS_CLIENTS[-1] else {"ATTESTKIT_OLD_CLIENT": "1"}
    run_tests(session, "tests/clients/test_js_sdk.py", "-k", chosen, slow=True, **old)


@nox.session(python="3.11")
@nox.parametrize("api", ["/v1"])
def dstack_v1(session: nox.Session, api: str) -> None:
    """Run the client of dstack 0.6 that is written from its specification."""
    del api
    install(session, wheel(), *TOOLS)
    copy_tests(session)
    run_tests(session, "tests/clients/test_dstack_v1.py", slow=True)


@nox.session(python="3.11")
@nox.parametrize("api", ["/", "/v0", "/v1"])
def own_client(session: nox.Session, api: str) -> None:
    """Run attestkit as a client of an agent with some of the mount points."""
    install(session, wheel(), *TOOLS)
    copy_tests(session)
    kinds = {"/": "05 or 0_5", "/v0": "alias", "/v1": "v1 or find_api"}
    run_tests(session, "tests/backends/dstack_agent/test_agent_api.py", "-k", kinds[api])
