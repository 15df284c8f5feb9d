"""A server whose app has keys of a KMS: the KMS signs certificates, over a pinned connection."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.keys import AppKeys
from attestkit.kms import SimulatedKms, boot_with_kms, verify_app_certificate
from attestkit.serve.app_factory import ServerOptions
from attestkit.serve.background_server import BackgroundServer
from attestkit.serve.endpoints import ListenAddresses
from tests.kms.boot.booting import SEED, guest, kms_of
from tests.runner.cases import every_case
from tests.serve.client import call


@pytest.fixture
def kms() -> Iterator[SimulatedKms]:
    """Return a KMS for guests of SEED."""
    with kms_of(SEED) as found:
        yield found


@contextmanager
def serving(tee: Attester[Simulator], folder: Path, **options: Any) -> Iterator[str]:
    """Serve a guest; return the path of its socket."""
    path, tappd = folder / "dstack.sock", folder / "tappd.sock"
    with BackgroundServer(tee, ListenAddresses(path, tappd), ServerOptions(**options)):
        yield str(path)


@pytest.fixture
def booted(kms: SimulatedKms) -> Iterator[Attester[Simulator]]:
    """Return a guest with keys of the KMS."""
    with guest() as tee:
        boot_with_kms(tee, kms.url, roots=[kms.root])
        yield tee


METHODS = [
    ("GetTlsKey", {"subject": "x", "alt_names": ["app.example"], "usage_server_auth": True}),
    ("v1/IssueCert", {"subject": "x"}),
]


@pytest.mark.parametrize(("method", "arguments"), METHODS)
def test_certificate_is_signed_by_the_kms(
    kms: SimulatedKms,
    booted: Attester[Simulator],
    tmp_path: Path,
    method: str,
    arguments: dict[str, object],
) -> None:
    """The chain leads to the pinned root, is of this app, and its evidence verifies."""
    with serving(booted, tmp_path) as path:
        answer = call(path, method, {**arguments, "usage_ra_tls": True})
        assert answer.status == 200
        chain = answer.json()["certificate_chain"]
    app_id = booted.backend.launch().app_id
    found = verify_app_certificate(chain, app_id=app_id, kms_roots=[kms.root], now=time.time())
    assert found.names_app
    result = ra_tls.verify(found.der, booted.verifier(), max_lifetime=None)
    assert result.app_info is not None
    assert result.app_info.app_id == app_id


@pytest.mark.parametrize("fault", ["kms_refuses", "kms_fails", "kms_signs_other", "kms_rollover"])
@pytest.mark.parametrize("asked", METHODS)
def test_failure_is_a_500_of_this_method_only(
    kms: SimulatedKms,
    booted: Attester[Simulator],
    tmp_path: Path,
    asked: tuple[str, dict[str, object]],
    fault: str,
) -> None:
    """The text says that signing failed; keys are still derived, because they are kept."""
    with serving(booted, tmp_path) as path:
        kms.arm(f"{fault}:5" if fault == "kms_fails" else fault)
        answer = call(path, *asked)
        assert answer.status == 500
        assert answer.json()["error"].startswith("Failed to sign the CSR: ")
        assert call(path, "GetKey", {"path": "a"}).status == 200
        assert call(path, "GetQuote", {"report_data": "ab"}).status == 200


class UnusedKms:
    """A client of a KMS that only counts the certificates that it should have requested."""

    requests = 0

    def sign_certificate(self, *_: object) -> None:
        """Count a request, and fail."""
        self.requests += 1
        raise AssertionError


@every_case(
    "wrong",
    [
        {"subject": "x" * 65},
        {"alt_names": ["a.example", "b\xfccher.example"]},
        {"alt_names": ["a.example"] * 257},
        {"not_before": 200_000_000, "not_after": 100_000_000},
        {"not_before": 100_000_000, "not_after": 100_000_000},
        {"not_after": 100_000_000},  # before 1975, the start
        {"not_after": 253_402_300_800},
        {"not_before": 253_402_300_800},
        {"not_before": 253_402_300_799},  # after the end, which is ten years from now
        {"not_after": 2**64 - 1},
    ],
    ids=repr,
)
def test_values_that_x509_cannot_express_are_a_400(
    booted: Attester[Simulator],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: dict[str, object],
) -> None:
    """They are refused before evidence is made and before the KMS is asked, as without a KMS."""
    kms, quoted = UnusedKms(), list[bytes]()
    with serving(booted, tmp_path, kms=kms) as path:
        monkeypatch.setattr(booted.backend, "get_quote", quoted.append)
        methods = [(path, "GetTlsKey"), (path, "v1/IssueCert")]
        if not any("not_" in name for name in wrong):
            methods.append((str(tmp_path / "tappd.sock"), "prpc/Tappd.DeriveKey"))
        for socket, method in methods:
            answer = call(socket, method, {"subject": "x", "path": "a", **wrong})
            assert (answer.status, [*answer.json()]) == (400, ["error"])
    assert (kms.requests, quoted) == (0, [])


def test_kms_signs_a_certificate_until_the_end_of_9999(
    booted: Attester[Simulator], tmp_path: Path
) -> None:
    """The last second of X.509 and a name of 64 characters are not refused."""
    with serving(booted, tmp_path) as path:
        message = {"subject": "x" * 64, "not_after": 253_402_300_799}
        [leaf, *_] = call(path, "GetTlsKey", message).json()["certificate_chain"]
    assert read_certificate(leaf).valid_until.timestamp() == 253_402_300_799


def test_slow_kms_does_not_delay_other_requests(
    kms: SimulatedKms, booted: Attester[Simulator], tmp_path: Path
) -> None:
    """While a certificate waits for the KMS, the server answers; Info does not wait for it."""
    with serving(booted, tmp_path) as path:
        kms.arm("kms_slow:3s kms_slow:3s")
        begin = time.monotonic()
        assert call(path, "Info", {}).status == 200
        assert call(path, "GetQuote", {"report_data": "ab"}).status == 200
        assert time.monotonic() - begin < 2.5


def test_info_has_the_certificate_once_it_is_signed(
    booted: Attester[Simulator], tmp_path: Path
) -> None:
    """The first Info does not wait for the KMS; later ones have the demo certificate."""
    with serving(booted, tmp_path) as path:
        end = time.monotonic() + 60
        while not (found := call(path, "Info", {}).json()["app_cert"]):
            assert time.monotonic() < end
        assert found.startswith("-----BEGIN CERTIFICATE-----")
        call(path, "EmitEvent", {"event": "later", "payload": "00"})
        assert call(path, "Info", {}).json()["app_cert"] == found


def test_events_cause_no_more_demo_certificates(
    kms: SimulatedKms,
    booted: Attester[Simulator],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a failing KMS, Info after each event requests no certificate again before 30 s."""
    with serving(booted, tmp_path) as path:
        kms.arm("kms_fails:*")
        for number in range(8):
            assert call(path, "Info", {}).json()["app_cert"] == ""
            call(path, "EmitEvent", {"event": f"event-{number}", "payload": "00"})
            assert call(path, "GetTlsKey", {"subject": "x"}).status == 500
    found = [one for one in caplog.messages if one.startswith("demo certificate")]
    assert len(found) <= 1


def test_keys_without_url_issue_no_certificates(
    booted: Attester[Simulator], tmp_path: Path
) -> None:
    """A key file without the URL of its KMS gives an error with the remedy."""
    fields = json.loads(booted.backend.app_keys.to_json())
    fields["key_provider"]["Kms"]["url"] = ""
    with (
        AppKeys.from_json(json.dumps(fields)) as keys,
        serving(booted, tmp_path, app_keys=keys) as path,
    ):
        answer = call(path, "GetTlsKey", {"subject": "x"})
        assert answer.status == 500
        assert "--kms-url" in answer.json()["error"]
        assert call(path, "Info", {}).json()["app_cert"] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("root", "code", "text"),
    [("other", 2, "not a pinned one"), (None, 1, "--kms-root"), ("missing", 1, "No such file")],
)
def test_server_with_a_wrong_pin_ends(
    kms: SimulatedKms, tmp_path: Path, root: str | None, code: int, text: str
) -> None:
    """The exit code distinguishes a rejected KMS from wrong options; there is no key file."""
    options = ["--dir", str(tmp_path / "run"), "--http", "none", "--seed", SEED.hex()]
    options += ["--kms-url", kms.url, "--backend", "simulator"]
    if root is not None:
        options += ["--kms-root", str(tmp_path / root)]
    with kms_of(SEED, seed=b"\7" * 32) as other:
        other.root.save(tmp_path / "other")
    done = subprocess.run(
        [sys.executable, "-m", "attestkit.serve", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / ".appkeys.json").exists()


@pytest.mark.slow
def test_server_boots_with_a_kms(kms: SimulatedKms, tmp_path: Path) -> None:
    """`--kms-url` and `--kms-root` boot the app, also at the next start without the KMS."""
    root = tmp_path / "root.json"
    kms.root.save(root)
    folder = tmp_path / "run"
    for url in (kms.url, "https://localhost:1"):
        options = ["--dir", str(folder), "--http", "none", "--seed", SEED.hex()]
        options += ["--kms-url", url, "--kms-root", str(root), "--backend", "simulator"]
        with subprocess.Popen(
            [sys.executable, "-m", "attestkit.serve", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline().startswith("ready ")
                info = call(str(folder / "dstack.sock"), "Info", {}).json()
                assert kms.root.provider_id in json.dumps(info["key_provider_info"])
                assert call(str(folder / "dstack.sock"), "GetKey", {"path": "a"}).status == 200
            finally:
                server.terminate()
                _, log = server.communicate(timeout=60)
        assert server.returncode == 0, log
    keys = json.loads((folder / ".appkeys.json").read_text())
    for name in ("k256_key", "env_crypt_key", "disk_crypt_key"):
        assert keys[name] not in log
