"""Facts about an Intel platform and its collateral in results."""

import json
from datetime import datetime, timezone

import jsonschema_rs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.x509.sgx_extension import read_sgx_extension
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import Authority, issue_crl
from attestkit._crypto.x509.vendor_roots import INTEL_ROOT_DER
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import CrlConfig
from attestkit.verifier import CollateralFacts, IntelPlatform, Verifier
from attestkit.verifier.claims import Tcb
from attestkit.verifier.dcap.engine import Dcap
from tests.cli.schemas import read
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    NOW,
    PKI,
    RAW,
    ROOT,
    authenticate,
    collateral,
    create_pki,
    load_hardware_quote,
    replace_collateral,
)


def facts(tcb: Tcb) -> tuple[IntelPlatform, CollateralFacts]:
    """Return both values of an Intel platform."""
    assert tcb.platform is not None
    assert tcb.collateral is not None
    return tcb.platform, tcb.collateral


def key_id(root: bytes) -> bytes:
    """Return SHA-384 of the point of a root's public key."""
    key = x509.load_der_x509_certificate(root).public_key()
    digest = hashes.Hash(hashes.SHA384())
    digest.update(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    return digest.finalize()


def test_platform_is_that_of_pck_certificate() -> None:
    """Each value is that of the PCK certificate, also at the ends of its range."""
    pki = create_pki(pcesvn=32767, sgx_type=2, pceid=b"\1\2", cpusvn=bytes(range(100, 116)))
    raw = QuotingEnclave(pki).quote(TdBody().td10())
    for own, found in (
        (PKI, authenticate()),
        (pki, authenticate(raw, pki.collateral(NOW), root=pki.root_der)),
    ):
        platform, _ = facts(found.tcb)
        extension = read_sgx_extension(own.platform().pck_der)._asdict()
        for name in ("fmspc", "dynamic_platform", "cached_keys", "smt_enabled"):
            assert found.tcb[name] == extension.pop(name)
        extension["component_svns"] = extension.pop("components")
        assert dict(platform) == extension
        assert platform.ppid == found.device
    assert (platform.pcesvn, platform.sgx_type, platform.pceid) == (32767, 2, b"\1\2")


def test_collateral_facts_are_those_of_both_crls_and_the_root() -> None:
    """Numbers of both CRLs, key id of the root and dates are those of the collateral used."""
    other = collateral(root_crl=CrlConfig(number=7), pck_crl=CrlConfig(number=2**159 - 1))
    for given, numbers in ((COLLATERAL, (20716, 20716)), (other, (7, 2**159 - 1))):
        _, found = facts(authenticate(RAW, given).tcb)
        assert (found.root_crl_number, found.pck_crl_number) == numbers
        assert found.root_key_id == key_id(ROOT)
        assert found.earliest_issue == PKI.config.not_before
        assert found.earliest_expiration == datetime(2026, 10, 20, tzinfo=timezone.utc)


def test_crl_number_of_any_size_is_returned() -> None:
    """A number with more digits than Python writes is accepted, also in `repr` and JSON."""
    window = Window(COLLATERAL.valid_from, COLLATERAL.valid_until)
    root = Authority("Intel SGX Root CA", PKI.key("root-ca"))
    number = 1 << 40000
    crl = issue_crl(root, window=window, number=number)
    tcb = authenticate(RAW, replace_collateral(root_ca_crl=crl)).tcb
    _, found = facts(tcb)
    assert found.root_crl_number == number
    assert "root_crl_number" not in repr(tcb)
    assert int(json.loads(json.dumps(found.to_dict()))["root_crl_number"], 16) == number


def test_result_contains_facts_that_match_the_schema() -> None:
    """A verifier's result has both values, and they are in `to_dict` as the schema has them."""
    verifier = Verifier(trust_anchor=ROOT, collateral=COLLATERAL)
    moment = datetime.fromtimestamp(NOW, timezone.utc)
    result = verifier.verify(RAW, report_data=None, now=moment)
    platform, found = facts(result.tcb)
    tcb = result.to_dict()["tcb"]
    assert isinstance(tcb, dict)
    assert tcb["platform"] == platform.to_dict()
    assert tcb["collateral"] == found.to_dict()
    definitions = read()["verify"]["$defs"]
    for name, definition in (("platform", "intel_platform"), ("collateral", "collateral_facts")):
        jsonschema_rs.validate(definitions[definition], tcb[name])


@needs_shared
@pytest.mark.parametrize(
    ("name", "sgx_type", "instance_id"),
    [("tdx_quote", 1, "07828474603e7019dc930775ffe8cdd2"), ("sgx_quote", 0, None)],
)
def test_facts_of_hardware(name: str, sgx_type: int, instance_id: str | None) -> None:
    """A Processor CA's certificate has no instance id; the key id is that of Intel's root."""
    quote, given = load_hardware_quote(name)
    platform, found = facts(Dcap().authenticate(quote, given, 1752000000).tcb)
    assert platform.sgx_type == sgx_type
    assert platform.instance_id == (instance_id and bytes.fromhex(instance_id))
    assert (found.root_crl_number, found.pck_crl_number) == (1, 1)
    assert found.root_key_id == key_id(INTEL_ROOT_DER)
    assert found.root_key_id.hex().startswith("46e403bd34f05a3f2817ab9badcaacc7")
