"""The tests that use each dependency, and its versions allowed by pyproject.toml."""

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.records import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_REQUIREMENT = re.compile(r"([\w-]+)>=([\w.]+)(?:; python_version < '(3\.\d+)')?")

# Each takes a few seconds; slow tests are deselected. The first of each run in combined cells.
SUITES: dict[str, tuple[str, ...]] = {
    "cffi": ("tests/native/test_native.py", "tests/native/test_replay.py", "tests/test_quote.py"),
    "cryptography": (
        *("tests/ra_tls/test_certificate.py", "tests/crypto/x509/test_app_certificates.py"),
        *("tests/crypto/test_ecdsa.py", "tests/crypto/test_rsa_pss.py"),
    ),
    "cbor2": (
        *("tests/attestation/wire/test_v1_cbor.py", "tests/attestation/test_nitro_document.py"),
        "tests/formats/test_cbor.py",
    ),
    "coincurve": ("tests/crypto/test_ecdsa.py", "tests/keys/test_signatures.py"),
    "pynacl": ("tests/crypto/test_ed25519.py", "tests/dstack/test_env_encryption.py"),
    "pycryptodome": ("tests/crypto/test_hashes.py", "tests/keys/test_signatures.py"),
    "msgspec": (
        *("tests/serve/rpc/test_json_codec.py", "tests/serve/rpc/test_messages.py"),
        "tests/dstack/test_app_compose.py",
    ),
    "tomli": (
        *("tests/verifier/policy/test_toml_reader.py", "tests/formats/test_toml.py"),
        "tests/verifier/policy/test_toml_writer.py",
    ),
    "uvicorn": (
        *("tests/serve/http/test_uvicorn.py", "tests/serve/http/test_protocol.py"),
        "tests/ra_tls/test_http.py",
    ),
    "httptools": ("tests/serve/http/test_protocol.py", "tests/serve/http/test_response_cycle.py"),
    "uvloop": ("tests/serve/http/test_server.py",),
    "jinja2": ("tests/serve/pages/test_dashboard.py", "tests/serve/test_pages.py"),
    "prometheus-client": ("tests/serve/metrics/test_agent.py",),
    "psutil": ("tests/serve/test_machine_info.py", "tests/serve/pages/test_dashboard_rows.py"),
    "aiodocker": ("tests/serve/docker/test_engine.py", "tests/serve/container_logs"),
    "wcwidth": ("tests/serve/rpc/test_event_log_json.py",),
    "protobuf": (
        "tests/serve/rpc/test_protobuf_codec.py",
        "tests/serve/api_docs/test_proto_file.py",
    ),
    "dcap-qvl": (
        "tests/verifier/dcap/test_authenticate.py",
        "tests/verifier/dcap/test_error_mapping.py",
    ),
    "click": (
        "tests/cli/test_cli.py",
        "tests/cli/options/test_verification.py",
        "tests/cli/commands/test_replay.py",
    ),
    "rich": (
        "tests/cli/test_cli.py",
        "tests/cli/commands/test_verify.py",
        "tests/cli/commands/test_verify_program.py",
    ),
    "mfusepy": ("tests/cli/commands/test_mount.py",),
    "dask": ("tests/matrix/test_cluster.py",),
    "distributed": ("tests/matrix/test_cluster.py", "tests/verifier/batch/test_scheduler.py"),
    "pyarrow": ("tests/matrix/test_table.py",),
}
TOGETHER = tuple(dict.fromkeys(paths[0] for paths in SUITES.values()))
QUICK = TOGETHER[:8]  # of the package's own dependencies
# Tests that must also pass with the Python core.
CORE = (
    *SUITES["cffi"],
    "tests/event_log/test_event_log.py",
    "tests/event_log/test_runtime_events.py",
)


class Range(NamedTuple):
    """The allowed versions of a dependency."""

    name: str
    lowest: str
    extra: str  # "": of the package itself
    before: str  # the first Python that does not need it, or ""

    @property
    def requirement(self) -> str:
        """The requirement in pip's syntax."""
        return f"{self.name}>={self.lowest}"

    def needed_by(self, python: str) -> bool:
        """Return whether a Python version, such as 3.10, needs it."""
        return not self.before or _minor(python) < _minor(self.before)


def ranges() -> list[Range]:
    """Return the versions that pyproject.toml allows of each dependency, with those of extras.

    A dependency of two extras is listed once.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, Range] = {}
    for extra, requirement in _requirements(project):
        matched = _REQUIREMENT.fullmatch(requirement)
        assert matched is not None, requirement
        name, lowest, before = matched.groups(default="")
        found.setdefault(name, Range(name, lowest, extra, before))
    return list(found.values())


def _requirements(project: dict[str, dict[str, list[str]]]) -> Iterator[tuple[str, str]]:
    yield from (("", each) for each in project["dependencies"])
    for extra, wanted in project["optional-dependencies"].items():
        if extra not in ("all", "dev"):
            yield from ((extra, each) for each in wanted)


def _minor(python: str) -> int:
    return int(python.partition(".")[2])
