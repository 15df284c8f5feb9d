"""Output of nvattest is read, found consistent or refused, and never taken as authenticated."""

import hashlib
import json
from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit.errors import FormatError, GpuEvidenceError
from attestkit.gpu.nras.nvattest_output import (
    LOCAL_ISSUER,
    MAX_OUTPUT,
    NvattestOutput,
    appraise_boot_result,
    read_nvattest_output,
)
from attestkit.gpu.result import GpuResult
from attestkit.gpu.rules import GpuRules
from tests.gpu.nras.nras_tokens import HEADER, NONCE, b64, device_claims, sign
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, data, needs_shared

PATH = "nvattest/dstack-gpu_attestation_h100.json"
EXPECTED: dict[str, Any] = (
    json.loads(data("gpu/expected.json"))["nvattest"][PATH] if HAVE_SHARED else {}
)
TOKEN_CLAIMS = {"iss", "iat", "nbf", "exp", "jti"}


@needs_shared
def test_read_nvattest_output_real_has_expected_values() -> None:
    """Every value of the real output is that of the vectors."""
    raw = data(f"gpu/{PATH}")
    found = read_nvattest_output(raw)
    assert found.sha256.hex() == EXPECTED["evidence_sha256"]
    assert found.raw == raw
    assert (found.result_code, found.result_message) == (EXPECTED["result_code"], "Ok")
    assert len(found.devices) == EXPECTED["claims"]
    nonces = [device.nonce for device in found.devices]
    assert nonces == [bytes.fromhex(nonce) for nonce in EXPECTED["eat_nonce"]]
    assert found.overall_result is EXPECTED["overall_result"]
    assert found.overall_claims["iss"] == EXPECTED["issuer"] == LOCAL_ISSUER
    digests = found.overall_claims["submods"]
    assert [entry[1][0] for entry in digests.values()] == EXPECTED["digest_name"]
    for name, token in found.eat.devices.items():
        matches = digests[name][1][1] == hashlib.sha256(token).hexdigest()
        assert EXPECTED["digest_matches"][name] is matches is True
    listed = json.loads(raw)["claims"]
    equal = [
        {key: value for key, value in device.claims.items() if key not in TOKEN_CLAIMS} == claims
        for device, claims in zip(found.devices, listed, strict=True)
    ]
    assert equal == EXPECTED["device_claims_equal_claims"]
    assert found.is_authenticated is False
    found.check(devices=1, nonce=b"\x11" * 32)
    with raises(GpuEvidenceError, "nras_nonce", device=0):
        found.check(nonce=NONCE)


def unsigned(claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
    """Return a token without signature."""
    parts = ({"alg": "none"} if header is None else header, claims)
    return ".".join([*(b64(json.dumps(part).encode()) for part in parts), ""])


def local(claims: dict[str, Any]) -> dict[str, Any]:
    """Return claims of the local verifier."""
    return claims | {"iss": LOCAL_ISSUER}


def output(*claims: dict[str, Any], overall: dict[str, Any] | None = None, **more: Any) -> bytes:
    """Return output about GPUs with these claims."""
    found = [local(each) for each in claims or (device_claims(),)]
    tokens = {f"GPU-{at}": unsigned(each) for at, each in enumerate(found)}
    digests = {
        name: ["DIGEST", ["SHA256", hashlib.sha256(token.encode()).hexdigest()]]
        for name, token in tokens.items()
    }
    stated = {
        "iss": LOCAL_ISSUER,
        "eat_nonce": NONCE.hex(),
        "x-nvidia-overall-att-result": True,
        "submods": digests,
        **(overall or {}),
    }
    listed = [{key: each[key] for key in each if key not in TOKEN_CLAIMS} for each in found]
    fields = {
        "claims": listed,
        "detached_eat": [["JWT", unsigned(stated)], tokens],
        "result_code": 0,
        "result_message": "Ok",
        **more,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def read(*claims: dict[str, Any], **more: Any) -> NvattestOutput:
    """Read output about GPUs with these claims."""
    return read_nvattest_output(output(*claims, **more))


def test_read_nvattest_output_of_twelve_devices_in_order() -> None:
    """Devices are in the order of their numbers; the list of claims may have another."""
    claims = [device_claims() | {"ueid": str(at)} for at in range(12)]
    found = read(*claims)
    assert [device.ueid for device in found.devices] == [str(at) for at in range(12)]
    found.check(devices=12, nonce=NONCE)
    listed = json.loads(output(*claims))["claims"]
    again = read(*claims, claims=listed[::-1])
    assert again.devices == found.devices
    with raises(GpuEvidenceError, "device_count", device=None):
        found.check(devices=11)


def test_nvattest_output_check_refuses_results() -> None:
    """Result, overall result and the claims of each device must be good."""
    with raises(GpuEvidenceError, "nras_result", device=None):
        read(result_code=3, result_message="bad\n").check()
    with raises(GpuEvidenceError, "nras_result", device=None):
        read(overall={"x-nvidia-overall-att-result": False}).check()
    with raises(GpuEvidenceError, "nras_result", device=1):
        read(device_claims(), device_claims() | {"secboot": False}).check()


def appraise(output: NvattestOutput, **rules: Any) -> GpuResult:
    """Appraise output whose measured event states its number of devices."""
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    event = {"devices": len(output.devices)}
    return appraise_boot_result(output, event, GpuRules(allow_boot_result=True, **rules), now)


def test_boot_result_with_a_device_twice_is_refused() -> None:
    """Each device has its own `ueid`; one device is not two GPUs, whatever a rule counts."""
    one, other = (device_claims() | {"ueid": ueid} for ueid in ("1", "2"))
    assert [device.ueid for device in appraise(read(one, other), count=2).devices] == ["1", "2"]
    for claims in ([one, one], [one, other, one]):
        with raises(GpuEvidenceError, "topology", device=len(claims) - 1):
            appraise(read(*claims), count=len(claims))


@pytest.mark.parametrize("ueid", [None, ""])
def test_boot_result_with_a_device_without_ueid_is_refused(ueid: str | None) -> None:
    """Devices without `ueid` could be one device."""
    with raises(GpuEvidenceError, "topology", device=1):
        appraise(read(device_claims(), device_claims() | {"ueid": ueid}))


@needs_shared
def test_boot_result_of_a_real_machine_states_its_device() -> None:
    """The real output has a `ueid`, and is accepted."""
    [device] = appraise(read_nvattest_output(data(f"gpu/{PATH}")), count=1).devices
    assert device.ueid.isdecimal()


def test_read_nvattest_output_of_failed_program_is_refused() -> None:
    """A program that failed and wrote no tokens verified nothing."""
    with raises(GpuEvidenceError, "nras_result", part="no GPU"):
        read(result_code=7, result_message="no GPU", detached_eat=None, claims=None)


@every_case(
    ("changes", "reason"),
    [
        ({"claims": []}, "inconsistent"),
        ({"claims": [device_claims()]}, "inconsistent"),
        ({"claims": ...}, "wrong_type"),
        ({"claims": {}}, "wrong_type"),
        ({"claims": [0] * 65}, "wrong_type"),
        ({"detached_eat": ...}, "wrong_type"),
        ({"detached_eat": None}, "wrong_type"),
        ({"result_code": ...}, "missing"),
        ({"result_code": "0"}, "wrong_value"),
        ({"result_code": False}, "wrong_value"),
        ({"result_message": 1}, "wrong_type"),
        ({"more": 1}, "unknown_field"),
        ({"overall": {"iss": "NRAS"}}, "wrong_value"),
        ({"overall": {"eat_nonce": "00"}}, "wrong_size"),
        ({"overall": {"eat_nonce": None}}, "missing"),
        ({"overall": {"eat_nonce": (b"\1" * 32).hex()}}, "inconsistent"),
        ({"overall": {"x-nvidia-overall-att-result": 1}}, "wrong_type"),
        ({"overall": {"submods": None}}, "missing"),
    ],
)
def test_read_nvattest_output_malformed_raises_format_error(
    changes: dict[str, Any], reason: str
) -> None:
    """Output that is malformed or contradicts itself is refused."""
    with raises(FormatError, reason):
        read(**changes)


def test_read_nvattest_output_with_device_of_other_nonce_is_refused() -> None:
    """All tokens have one nonce."""
    for nonce in ((b"\1" * 32).hex(), None):
        with raises(FormatError, "inconsistent"):
            read(device_claims(), device_claims() | {"eat_nonce": nonce})


def test_read_nvattest_output_with_other_tokens_is_refused() -> None:
    """A token must be that which the overall token names, and without signature."""
    fields = json.loads(output())
    fields["detached_eat"][1]["GPU-0"] = unsigned(local(device_claims()) | {"ueid": "1"})
    with raises(GpuEvidenceError, "nras_digest", device=0):
        read_nvattest_output(json.dumps(fields).encode())
    for token in (
        sign(HEADER, local(device_claims())),
        unsigned(local(device_claims()), {"alg": "none", "kid": "1"}),
        unsigned(local(device_claims())) + "AAAA",
    ):
        fields = json.loads(output())
        fields["detached_eat"][0][1] = token
        with raises(FormatError, "unsupported"):
            read_nvattest_output(json.dumps(fields).encode())


def test_read_nvattest_output_cut_at_any_length_raises_format_error() -> None:
    """Each prefix is refused, and output over the limit."""
    whole = output()
    for size in range(0, len(whole), 3):
        with raises(FormatError, "syntax"):
            read_nvattest_output(whole[:size])
    with raises(FormatError, "too_large"):
        read_nvattest_output(bytes(MAX_OUTPUT + 1))
