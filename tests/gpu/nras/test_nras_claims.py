"""Claims of versions 2.0 and 3.0 have one form, and each that is not good is a problem."""

from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit.errors import FormatError
from attestkit.gpu.nras.claims import (
    CertificateClaims,
    DeviceClaims,
    DeviceRefusal,
    RimClaims,
    read_claims,
)
from tests.gpu.nras.nras_tokens import NONCE, chain, device_claims
from tests.raising import raises
from tests.runner.cases import every_case

GPU = "x-nvidia-gpu-"
EXPIRES = datetime(2028, 4, 23, 5, 31, 21, tzinfo=timezone.utc)
GOOD = CertificateClaims("valid", "good", EXPIRES, None, None, None)
OLD = CertificateClaims("valid", None, None, None, None, None)


def read(
    claims: dict[str, Any] | None = None, *, name: str = "GPU-0", version: str = "3.0", **more: Any
) -> DeviceClaims:
    """Read claims of a good device that are changed, or left out (...)."""
    kind = "switch" if name.startswith("SWITCH") else "gpu"
    found = device_claims(version, kind) | (claims or {}) | more
    return read_claims({key: value for key, value in found.items() if value is not ...}, name)


def test_read_claims_of_version_3() -> None:
    """Every claim of version 3.0 is read."""
    found = read()
    rim = RimClaims(True, True, True, True, True, GOOD)
    assert found == DeviceClaims(
        name="GPU-0",
        kind="gpu",
        version="3.0",
        nonce=NONCE,
        measurements_match=True,
        secure_boot=True,
        debug_status="disabled",
        hardware_model="GH100 A01 GSP BROM",
        ueid="478176379286082186618948445787393647364802107249",
        oem_id="5703",
        driver_version="550.90.07",
        vbios_version="96.00.9F.00.01",
        architecture_matches=True,
        report_parsed=True,
        nonce_matches=True,
        report_signature_verified=True,
        fwid_matches=True,
        certificates=GOOD,
        driver_rim=rim,
        vbios_rim=rim,
        no_index_conflict=True,
        warning=None,
        mismatches=None,
        error=None,
        claims=device_claims(),
    )
    assert found.problems() == ()


def test_read_claims_of_version_2() -> None:
    """Version 2.0 has flags about certificates, and neither FWID nor version of the RIMs."""
    found = read(version="2.0")
    rim = RimClaims(True, True, True, None, True, OLD)
    assert (found.version, found.certificates, found.fwid_matches) == ("2.0", OLD, None)
    assert (found.driver_rim, found.vbios_rim) == (rim, rim)
    assert found.problems() == ()
    assert read(version="2.0", measres="comparison-successful").problems() == ()


def test_read_claims_of_switch() -> None:
    """A switch has one RIM, and names of its own."""
    found = read(name="SWITCH-3")
    assert (found.kind, found.name, found.driver_rim, found.oem_id) == (
        *("switch", "SWITCH-3", None, None),
    )
    assert found.vbios_rim == RimClaims(True, True, True, True, True, GOOD)
    assert found.vbios_version == "96.00.9F.00.01"
    assert read({"x-nvidia-switch-bios-index-no-conflict": ...}, name="SWITCH-0").problems() == ()


def test_read_claims_of_local_tools() -> None:
    """NVIDIA's local tools state more, and leave the schema out."""
    certificates = chain(ocsp_nonce_matches=True, ocsp_response_valid=True)
    found = read(
        {
            f"{GPU}attestation-report-cert-chain": certificates,
            f"{GPU}claims-version": "3.0",
            f"{GPU}driver-rim-schema-validated": ...,
            f"{GPU}vbios-rim-schema-validated": ...,
            "x-nvidia-device-type": "gpu",
            "x-nvidia-mismatch-measurement-records": None,
        }
    )
    expected = CertificateClaims("valid", "good", EXPIRES, None, True, True)
    assert (found.certificates, found.mismatches, found.problems()) == (expected, 0, ())


FLAGS = sorted(
    name
    for version in ("2.0", "3.0")
    for name, value in device_claims(version).items()
    if value is True
)
OPTIONAL = {f"{GPU}{rim}-rim-schema-validated" for rim in ("driver", "vbios")}


@every_case("name", sorted(set(FLAGS)))
def test_problems_of_flag_that_is_false_or_missing(name: str) -> None:
    """Each flag must be true; that of the schema may be missing."""
    version = "2.0" if name in device_claims("2.0") else "3.0"
    assert len(read({name: False}, version=version).problems()) == 1
    assert len(read({name: ...}, version=version).problems()) == (name not in OPTIONAL)
    with raises(FormatError, "wrong_type", part=name):
        read({name: "true"}, version=version)


CHAINS = [f"{GPU}{name}-cert-chain" for name in ("attestation-report", "driver-rim", "vbios-rim")]


@every_case("name", CHAINS)
@every_case(
    "changes",
    [
        {"status": "expired"},
        {"status": "invalid"},
        {"status": "Valid"},
        {"ocsp_status": "unknown"},
        {"ocsp_status": "revoked"},
        {"ocsp_nonce_matches": False},
        {"ocsp_response_valid": False},
    ],
)
def test_problems_of_certificates(name: str, changes: dict[str, Any]) -> None:
    """Certificates must be valid and good by OCSP; also if a hold is allowed."""
    found = read({name: chain(**changes)})
    assert len(found.problems()) == len(found.problems(allow_hold=True)) == 1


@pytest.mark.parametrize("reason", ["certificateHold", "certificate_hold"])
def test_problems_of_certificates_on_hold(reason: str) -> None:
    """RIMs' certificates may be on hold if that is allowed; the device's may not."""
    hold = chain(status="revoked", ocsp_status="revoked", revocation_reason=reason)
    for name in CHAINS:
        found = read({name: hold})
        assert len(found.problems()) == 1
        assert len(found.problems(allow_hold=True)) == ("attestation-report" in name)
    other = chain(status="revoked", ocsp_status="revoked", revocation_reason="keyCompromise")
    assert len(read({CHAINS[1]: other}).problems(allow_hold=True)) == 1


@every_case(
    "claims",
    [
        {"measres": "fail"},
        {"measres": ...},
        {"dbgstat": "enabled"},
        {"dbgstat": ...},
        {"secboot": None},
        {"x-nvidia-mismatch-measurement-records": [{"index": 9}]},
        {CHAINS[1]: ...},
        {"x-nvidia-error-details": {"code": 4010, "message": "NONCE\n", "httpStatus": 400}},
    ],
)
def test_problems_of_other_claims(claims: dict[str, Any]) -> None:
    """Each claim that is not good is one problem, in printable text."""
    (problem,) = read(claims).problems()
    assert problem.isprintable()


def test_read_claims_of_service_error() -> None:
    """An error of the service takes the place of all claims."""
    error = {"code": 4010, "message": "NONCE_NOT_MATCHING", "description": "of the evidence"}
    found = read_claims({"x-nvidia-error-details": error}, "GPU-0")
    assert found.error == DeviceRefusal(4010, "NONCE_NOT_MATCHING", "of the evidence")
    assert found.problems() == ("error 4010 of the service: 'NONCE_NOT_MATCHING'",)


@every_case(
    ("claims", "reason"),
    [
        ({"eat_nonce": "zz"}, "encoding"),
        ({"eat_nonce": "00"}, "wrong_size"),
        ({"hwmodel": 1}, "wrong_type"),
        ({"hwmodel": "a" * 257}, "too_large"),
        ({"measres": True}, "wrong_type"),
        ({CHAINS[0]: True}, "wrong_type"),
        ({CHAINS[0]: {}}, "missing"),
        ({CHAINS[0]: chain(status=1)}, "wrong_type"),
        ({CHAINS[0]: chain(expiration_date="soon")}, "wrong_value"),
        ({CHAINS[0]: chain(expiration_date="2026-02-30T00:00:00Z")}, "wrong_value"),
        ({CHAINS[0]: chain(expiration_date="2026-02-03T00:00:00+00:00")}, "wrong_value"),
        ({CHAINS[0]: chain(ocsp_nonce_matches=1)}, "wrong_type"),
        ({f"{GPU}claims-version": "4.0"}, "unsupported_version"),
        ({f"{GPU}claims-version": "2.0"}, "inconsistent"),
        ({"x-nvidia-device-type": "switch"}, "inconsistent"),
        ({"x-nvidia-mismatch-measurement-records": 1}, "wrong_type"),
        ({"x-nvidia-mismatch-measurement-records": [0] * 257}, "too_many"),
        ({"x-nvidia-error-details": "4010"}, "wrong_type"),
        ({"x-nvidia-error-details": {}}, "wrong_value"),
        ({"x-nvidia-error-details": {"code": True}}, "wrong_value"),
        ({"x-nvidia-error-details": {"code": 4010, "message": 1}}, "wrong_type"),
    ],
)
def test_read_claims_malformed_raises_format_error(claims: dict[str, Any], reason: str) -> None:
    """A claim of another type is malformed."""
    with raises(FormatError, reason):
        read(claims)
