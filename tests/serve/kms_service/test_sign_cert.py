"""SignCert of a simulated KMS: the order of its checks, and the certificate."""

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.kms import CertRequest, SimulatedKms, verify_app_certificate
from attestkit.kms.cert_request import sign_cert_request
from attestkit.kms.release.authorization import Decision
from tests.kms.replayed_kms import APP_ID, BOOT, VM_CONFIG
from tests.serve.kms_service.kms_clients import KEY, anonymous, evidence_of
from tests.vectors import data, load, needs_shared
from tests.verifier.platforms import intel

ROWS: list[dict[str, Any]] = load("kms.json").get("groups", {}).get("sign_cert", {}).get("rows", [])
NOW = intel.NOW.timestamp()


@pytest.fixture(scope="module")
def kms() -> Iterator[SimulatedKms]:
    """Run a KMS."""
    with SimulatedKms(
        intel.verifier(), seed=bytes(32), now=lambda: NOW, image_verify=False
    ) as found:
        yield found


RUNNING = (*BOOT, ("key-provider", b"{}"), ("system-ready", b""))


def sign(kms: SimulatedKms, csr: bytes, signature: bytes, version: int = 2) -> tuple[int, Any]:
    """Call SignCert."""
    arguments = {"api_version": version, "csr": csr.hex(), "signature": signature.hex()}
    answer = anonymous(kms).call("SignCert", arguments)
    return answer.status, answer.json()


def request(boot: Any = BOOT, **names: Any) -> tuple[bytes, bytes]:
    """Return a request and its signature."""
    evidence = evidence_of(KEY, boot)
    return sign_cert_request(CertRequest(KEY.spki_der, "app", evidence, **names), KEY)


@needs_shared
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_vector_gets_the_error_of_the_real_kms(row: dict[str, Any], kms: SimulatedKms) -> None:
    """Up to the signature the texts are the KMS's; then the evidence is of other report data."""
    rest = bytes.fromhex(row["then"]) if "then" in row else data(row["then_file"][len("data/") :])
    csr = bytes.fromhex(row["head"]) + rest
    status, body = sign(kms, csr, bytes.fromhex(row["signature"]), row["api_version"])
    expected = "Quote verification failed: report data mismatch"
    if row["signature_check"] != "ok":
        expected = f"Failed to verify csr signature: {row['signature_check']}"
    elif row["api_version"] == 1:
        expected = "Failed to upgrade csr v1 to v2: "
    assert status == 400
    assert body["error"].startswith(expected)


def test_chain_is_that_of_the_app(kms: SimulatedKms) -> None:
    """Leaf, CA of the app, root; with the names, usages and extensions of the request."""
    csr, signature = request(
        RUNNING,
        org_name="Org",
        subject_alt_names=("app.example", "10.0.0.1"),
        usage_server_auth=True,
        ext_quote=True,
        ext_app_info=True,
    )
    status, body = sign(kms, csr, signature)
    assert status == 200
    chain = body["certificate_chain"]
    found = verify_app_certificate(chain, app_id=APP_ID, kms_roots=[kms.root], now=NOW)
    assert found is not None
    assert read_certificate(chain[2]).spki_der == kms.root.ca_spki
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    assert leaf.subject.rfc4514_string() in {"O=Org,CN=app", "CN=app,O=Org"}
    names = [one.oid.dotted_string.removeprefix("1.3.6.1.4.1.62397.1") for one in leaf.extensions]
    assert names == ["2.5.29.17", "2.5.29.15", "2.5.29.37", ".3", ".9", ".4", ".8"]
    # App id and app info agree with the evidence in the same certificate.
    result = ra_tls.verify(chain[0], intel.verifier(), now=NOW, max_lifetime=None)
    assert result.app_info is not None
    assert result.app_info.app_id == APP_ID


def test_app_info_needs_a_guest_that_has_booted(kms: SimulatedKms) -> None:
    """Before system-ready, evidence names no app for verifiers: nothing is embedded."""
    status, body = sign(kms, *request(ext_app_info=True))
    assert status == 400
    assert body["error"] == "cannot embed app info: the signer established none"


def test_running_app_gets_certificates(kms: SimulatedKms) -> None:
    """Its identity is that of its boot, whatever it has emitted since."""
    later = (*BOOT, ("system-ready", b""), ("app-id", bytes(20)))
    status, body = sign(kms, *request(later))
    assert status == 200
    leaf = read_certificate(body["certificate_chain"][0])
    assert leaf.content(ra_tls.OID_APP_ID) == APP_ID


def test_evidence_without_the_event_boot_mr_done_is_refused(kms: SimulatedKms) -> None:
    """Such a guest has not named its app."""
    status, body = sign(kms, *request(BOOT[:-1]))
    assert status == 400
    assert body["error"].startswith("Quote verification failed: ")
    assert "boot-mr-done" in body["error"]


@pytest.mark.parametrize(
    "names",
    [{"subject_alt_names": ("\xf6",)}, {"not_after": 253_402_300_800}, {"subject": "x" * 65}],
)
def test_names_that_x509_cannot_express_are_refused(
    names: dict[str, Any], kms: SimulatedKms
) -> None:
    """They are an error of the request, not of the KMS."""
    fields = {"pubkey": KEY.spki_der, "subject": "app", "evidence": evidence_of(KEY), **names}
    status, _ = sign(kms, *sign_cert_request(CertRequest(**fields), KEY))
    assert status == 400


def test_authorization_decides_about_certificates() -> None:
    """A revoked app gets no certificates; the reason has no prefix."""
    with SimulatedKms(
        intel.verifier(),
        now=lambda: NOW,
        image_verify=False,
        auth=lambda _: Decision.refuse("revoked"),
    ) as kms:
        status, body = sign(kms, *request())
    assert (status, body) == (400, {"error": "Boot denied: revoked"})


def test_other_vm_config_is_refused(kms: SimulatedKms) -> None:
    """Request and evidence must have the same configuration, as a KMS since 0.6.1 requires."""
    csr, signature = request()
    arguments = {"api_version": 2, "csr": csr.hex(), "signature": signature.hex()}
    call = anonymous(kms).call
    assert call("SignCert", {**arguments, "vm_config": VM_CONFIG}).status == 200
    assert call("SignCert", {**arguments, "vm_config": '{"cpu_count":1}'}).status == 400
