"""No output of a KMS or of its client contains one of their marked secrets.

The secrets are the roots of a simulated KMS, its TLS key, its token for administration, the keys
that it derives for an app and the key of the app's CA. Only successful responses that release keys
may contain some of them.
"""

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

import attestkit
from attestkit._crypto.ecdsa import P256Key
from attestkit._system.clock import current_time
from attestkit.attester import Attester
from attestkit.backends.simulator.faults.kms_faults import KMS_FAULTS
from attestkit.errors import AttestKitError, KmsError
from attestkit.kms import KmsClient, SimulatedKms
from attestkit.kms.https_call import TimeLimits
from attestkit.kms.release.authorization import Decision, FunctionAuthorization
from attestkit.kms.release.roots import KmsRoots, derive_app_ca, release_app_keys
from attestkit.kms.release.state_folder import KmsStateFolder, create_state
from attestkit.report_data import ReportData
from attestkit.testing import SimulatedTee
from tests.secrets.marks import mark, search
from tests.secrets.test_marked_keys import Output, error_chain_text, read_files, read_proc
from tests.serve.client import Connection
from tests.serve.kms_service.kms_clients import (
    KEY,
    Client,
    ServedKms,
    anonymous,
    with_certificate,
)
from tests.serve.server import PATIENCE, SEED, Server, environment, running_server

NAMES: Final = ("KMS CA key", "KMS k256 key", "KMS TLS key")
MARKS: Final = {name: mark(name) for name in NAMES}
TOKEN: Final = mark("token").hex()
TEMP_CA: Final = P256Key.from_scalar(mark("temporary CA"))  # public: every client gets it
ROOTS: Final = KmsRoots(
    ca_key=P256Key.from_scalar(MARKS["KMS CA key"]),
    k256_secret=MARKS["KMS k256 key"],
    temp_ca_key=TEMP_CA,
    rpc_key=P256Key.from_scalar(MARKS["KMS TLS key"]),
)
LOCAL: Final = "127.0.0.1:0"
METHODS: Final = (
    *("GetMeta", "GetTempCaCert", "GetAppKey", "GetKmsKey", "GetAppEnvEncryptPubKey", "SignCert"),
    *("KMS.GetMeta", "Onboard.Bootstrap", "Onboard.Finish", "Nope"),
)
BODIES: Final[tuple[dict[str, object], ...]] = (
    {},
    {"api_version": 1, "vm_config": "", "app_id": "11" * 20, "csr": "00", "signature": "00"},
    {"api_version": "x", "vm_config": 1, "app_id": "zz", "csr": [], "signature": None},
)
PAGES: Final = ("/", "/metrics", "/health", "/none", "/prpc", "/prpc/GetAppKey?json")
ADMIN: Final = ("/prpc/Admin.ClearImageCache", "/prpc/Admin.Nope", "/metrics", "/")


def secrets_of(tee: SimulatedTee | Attester) -> dict[str, bytes]:
    """Return the marked secrets, and those that the KMS derives for this app."""
    info = tee.attest(report_data=bytes(64)).read_app_info(key_time=True)
    keys = release_app_keys(ROOTS, info.app_id, info.instance_id)
    return {
        **MARKS,
        "disk_crypt_key": keys.disk_crypt_key,
        "env_crypt_key": keys.env_crypt_key,
        "k256_key": keys.k256_key,
        "app CA key": derive_app_ca(ROOTS, info.app_id).scalar,
    }


def secrets_in(outputs: list[Output], secrets: Mapping[str, bytes]) -> list[str]:
    """Return the secrets found in outputs."""
    return [
        f"{output.name}: {one.secret} as {one.form}"
        for output in outputs
        for one in search(output.content, secrets)
    ]


# -- a serving process ----------------------------------------------------------------------------


@contextlib.contextmanager
def marked_server(folder: Path, *options: str) -> Iterator[tuple[Server, ServedKms, Attester]]:
    """Run a server whose KMS has the marked roots; yield it, its KMS and a guest."""
    for name in ("state", "run", "tmp"):
        (folder / name).mkdir(mode=0o700)
    (folder / "state" / "simulator.seed").write_text(SEED)
    state = create_state(ROOTS, "localhost", int(current_time()))
    with KmsStateFolder(folder / "state" / "kms") as stored:
        stored.store(state, int(current_time()))
    given = ("--state-dir", str(folder / "state"), "--kms", LOCAL, "--kms-admin", LOCAL, "--json")
    logged = ("--log-level", "debug", "--access-log")
    environ = environment(TMPDIR=str(folder / "tmp"), DSTACK_KMS_ADMIN_TOKEN=TOKEN)
    with (
        running_server(*given, *logged, *options, folder=folder / "run", environ=environ) as server,
        attestkit.open("simulator", seed=bytes.fromhex(SEED)) as tee,
    ):
        yield server, ServedKms(server.ready["kms"], state.root_pem), tee


def request_methods(client: Client, name: str, *, has_evidence: bool) -> Iterator[Output]:
    """Request every method and page; yield what may contain no key."""
    for method in METHODS:
        responses = [client.call(method, body) for body in BODIES]
        responses.append(client.send("POST", f"/prpc/{method}", b"\x0a\x01a\xff"))
        responses.append(client.send("GET", f"/prpc/{method}?api_version=1"))
        for response in responses:
            if has_evidence and method == "GetAppKey" and response.status == 200:
                continue
            content = repr(response.headers).encode() + response.body
            yield Output(f"{method} {response.status} {name}", content)
    for page in PAGES:
        if not (has_evidence and "GetAppKey" in page):
            yield Output(page, client.send("GET", page).body)


def request_admin(url: str) -> Iterator[Output]:
    """Make requests for administration with and without the token."""
    bodies: tuple[dict[str, object], ...] = ({}, {"image_hash": "all"}, {"image_hash": "no hex"})
    for target in ADMIN:
        for headers in ({}, {"X-Admin-Token": TOKEN}, {"X-Admin-Token": TOKEN[:-1]}):
            for body in bodies:
                with contextlib.closing(Connection(url)) as connection:
                    sent = {"Content-Type": "application/json", **headers}
                    response = connection.send_request("POST", target, json.dumps(body), sent)
                content = repr(response.headers).encode() + response.body
                yield Output(f"{target} {response.status}", content)


def stop_and_read(server: Server) -> list[Output]:
    """Stop a server; return its output and log."""
    assert server.stop() == 0
    assert server.process.stdout is not None
    return [
        Output("stdout", (server.line + server.process.stdout.read()).encode()),
        Output("log and access log", server.log().encode()),
    ]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="text"),
        pytest.param(("--log-format", "json"), id="json", marks=pytest.mark.slow),
    ],
)
def test_serving_process_outputs_contain_no_secret(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """After any requests no secret is in responses, log, metrics, /proc, or files but its own."""
    outputs: list[Output] = []
    with marked_server(tmp_path, *options) as (server, kms, tee):
        secrets = secrets_of(tee)
        bound = ReportData.bind(ReportData.RATLS_CERT, KEY.spki_der)
        extension = tee.attest(report_data=bound).stripped().to_bytes()
        guest = with_certificate(kms, extension)
        released = guest.call("GetAppKey", {"api_version": 1}).json()
        for name in ("disk_crypt_key", "env_crypt_key", "k256_key"):  # the marked roots are used
            assert released[name] == secrets[name].hex()
        for name, client in (("anonymous", anonymous(kms)), ("guest", guest)):
            outputs += request_methods(client, name, has_evidence=name == "guest")
        garbage = with_certificate(kms, b"\xef" * 3)
        outputs += request_methods(garbage, "malformed evidence", has_evidence=False)
        outputs += request_admin(server.ready["kms_admin"])
        environ_name = "/proc/PID/environ"  # has the token, which is given in it
        outputs += [one for one in read_proc(server.process.pid) if one.name != environ_name]
        outputs += stop_and_read(server)
    outputs += read_files(tmp_path / "run", except_names=frozenset())
    outputs += read_files(tmp_path / "tmp", except_names=frozenset())
    assert not secrets_in(outputs, {**secrets, "token": bytes.fromhex(TOKEN)})
    assert len(outputs) > 200
    [log] = [one.content for one in outputs if one.name == "log and access log"]
    assert log.count(b"GetAppKey") > 6


def run_fetch(folder: Path, url: str, *options: str) -> "subprocess.CompletedProcess[bytes]":
    """Run `attestkit keys fetch` as the guest."""
    words = ("keys", "fetch", "--kms-url", url, "--kms-root", str(folder / "run" / "kms-root.json"))
    guest = ("--backend", "simulator", "--option", f"seed={SEED}")
    return subprocess.run(
        [sys.executable, "-m", "attestkit", *words, *guest, *options],
        env=environment(),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.slow
def test_output_of_keys_fetch_contains_no_secret(tmp_path: Path) -> None:
    """The command prints public keys; its file alone, mode 0600, has the secret ones."""
    with marked_server(tmp_path) as (server, kms, tee):
        secrets = secrets_of(tee)
        runs: tuple[tuple[int, tuple[str, ...]], ...] = (
            *((0, ()), (0, ("--json",)), (0, ("-o", "keys.json")), (1, ("-o", "-"))),
            *((0, ("-o", "keys.json", "--json")), (1, ("-o", "nowhere/keys.json"))),
        )
        for code, options in runs:
            done = run_fetch(tmp_path, kms.url, *options)
            assert done.returncode == code, done.stderr
            outputs = [Output("stdout", done.stdout), Output("stderr", done.stderr)]
            assert done.stdout + done.stderr
            assert b"Traceback" not in done.stderr
            assert not secrets_in(outputs, secrets), options
        outputs = stop_and_read(server)
    assert not secrets_in(outputs, secrets)
    path = tmp_path / "keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found = {one.secret for one in search(path.read_bytes(), secrets)}
    assert found == {"disk_crypt_key", "env_crypt_key", "k256_key"}


# -- errors, logs and objects of the client --------------------------------------------------------


@pytest.fixture
def marked_kms(tee: SimulatedTee) -> Iterator[SimulatedKms]:
    """Run a KMS with the marked roots, which releases them to another KMS too."""

    def allow(_: Any) -> Decision:
        return Decision.allow()

    auth = FunctionAuthorization(allow, allow)
    with SimulatedKms(tee.verifier(), roots=ROOTS, auth=auth, attester=tee.attester) as kms:
        yield kms


@pytest.mark.parametrize("fault", sorted(KMS_FAULTS))
def test_fault_of_kms_logs_and_reports_no_secret(
    fault: str,
    marked_kms: SimulatedKms,
    tee: SimulatedTee,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither the errors of the client, with their causes, nor any log contain a key."""
    caplog.set_level(logging.DEBUG)
    limits = TimeLimits(connect=5.0, call=0.3 if fault == "kms_slow" else 20.0)
    client = KmsClient(
        marked_kms.url,
        roots=[marked_kms.root],
        attester=tee.attester,
        verifier=tee.verifier(),
        limits=limits,
    )
    marked_kms.arm("kms_slow:1s" if fault == "kms_slow" else f"{fault}:*")
    texts = []
    try:
        texts.append(repr(client.fetch_app_keys()))  # kms_signs_other does not concern GetAppKey
    except KmsError as error:
        texts.append(error_chain_text(error))
        texts += [error_chain_text(one) for one in error.failures]
    marked_kms.faults.clear()
    texts += [caplog.text, *(str(vars(record)) for record in caplog.records), *capfd.readouterr()]
    outputs = [Output("text", "\n".join(texts).encode())]
    assert not secrets_in(outputs, secrets_of(tee))


def test_onboarding_logs_and_reports_no_secret(
    marked_kms: SimulatedKms,
    tee: SimulatedTee,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The roots go from one KMS to another, and no response to the operator or log has them."""
    caplog.set_level(logging.DEBUG)
    outputs = []
    message = json.dumps({"domain": "localhost", "source_url": marked_kms.url})
    second = SimulatedKms(
        tee.verifier(),
        auth=FunctionAuthorization(lambda _: Decision.allow(), lambda _: Decision.allow()),
        state_dir=tmp_path / "second",
        attester=tee.attester,
        onboarding=True,
    )
    with second:
        for target in ("Onboard", "Onboard", "Bootstrap", "GetAttestationInfo", "Finish"):
            with contextlib.closing(Connection(second.url)) as connection:
                headers = {"Content-Type": "application/json"}
                answer = connection.send_request(
                    "POST", f"/prpc/Onboard.{target}", message, headers
                )
            outputs.append(Output(target, repr(answer.headers).encode() + answer.body))
        assert second.wait_for_keys(PATIENCE)
        assert second.root == marked_kms.root
    texts = [caplog.text, *(str(vars(record)) for record in caplog.records), *capfd.readouterr()]
    outputs.append(Output("log", "\n".join(texts).encode()))
    assert not secrets_in(outputs, secrets_of(tee))
    stored = {path.name for path in (tmp_path / "second").iterdir()}
    assert {"root-ca.key", "root-k256.key"} <= stored


def test_repr_of_kms_objects_contains_no_secret(
    marked_kms: SimulatedKms, tee: SimulatedTee
) -> None:
    """No representation of an object that holds roots or released keys contains them."""
    fetched = KmsClient(
        marked_kms.url, roots=[marked_kms.root], attester=tee.attester
    ).fetch_app_keys()
    info = tee.app_info
    objects = (
        *(ROOTS, marked_kms, marked_kms.root, fetched, fetched.app_keys),
        *(fetched.app_keys.kms_provider, release_app_keys(ROOTS, info.app_id, info.instance_id)),
        create_state(ROOTS, "localhost", int(current_time())),
    )
    secrets = secrets_of(tee)
    for one in objects:
        for shown in (repr(one), str(one), f"{one}", f"{[one]!r}", ascii({"key": one})):
            assert not search(shown.encode(), secrets), type(one)


def test_error_of_state_folder_contains_no_secret(tmp_path: Path) -> None:
    """A damaged folder is reported without its content."""
    now = int(current_time())
    with KmsStateFolder(tmp_path / "kms") as folder:
        folder.store(create_state(ROOTS, "localhost", now), now)
        for name in ("root-ca.key", "rpc.key", "root-k256.key"):
            path = tmp_path / "kms" / name
            whole = path.read_bytes()
            for damaged in (whole[:-1], whole + b"\0", whole[: len(whole) // 2], whole.upper()):
                path.write_bytes(damaged)
                try:
                    folder.load_or_create("localhost", now)
                except AttestKitError as error:
                    shown = error_chain_text(error).encode()
                    assert not search(shown, MARKS), name
            path.write_bytes(whole)
        assert folder.load_or_create("localhost", now).roots.ca_spki == ROOTS.ca_spki
