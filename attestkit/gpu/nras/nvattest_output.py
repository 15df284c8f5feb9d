"""Output of `nvattest attest`: its reader, and its appraisal as the boot result of a dstack guest.

NVIDIA's program verifies the GPUs of its own machine, and its tokens have no signature (`alg`
none), so such output can be forged. It is authentic only if a measured guest recorded its hash. A
dstack guest runs the program at boot, and measures the SHA-256 of its output: a statement of the
measured guest about itself, as of boot.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._outcomes.reasons import FormatReason
from attestkit._outcomes.steps import GpuReason, caution, skipped
from attestkit._sanitize import one_line
from attestkit.errors import FormatError, GpuEvidenceError
from attestkit.gpu.architectures import DeviceLabel, chip_of
from attestkit.gpu.nras.claims import DeviceClaims, read_claims
from attestkit.gpu.nras.detached_eat import (
    LOCAL_DIGESTS,
    MAX_DEVICES,
    DetachedEat,
    check_digests,
    read_bundle,
    read_token,
)
from attestkit.gpu.result import DeviceResult, GpuResult
from attestkit.gpu.rules import GpuRules

LOCAL_ISSUER: Final = "NVAT-LOCAL-VERIFIER"
"""Issuer (`iss`) of the tokens that `nvattest` makes."""
MAX_OUTPUT: Final = 1 << 20
"""Maximum size of the output in bytes."""
_SUBJECT: Final = "nvattest output"
_KEYS: Final = frozenset({"claims", "detached_eat", "result_code", "result_message"})
_TOKEN_CLAIMS: Final = frozenset({"exp", "iat", "iss", "jti", "nbf", "sub"})
_MAX_MESSAGE: Final = 200  # characters
_BY_GUEST: Final = (
    caution(
        "gpu_report",
        "the guest itself verified its GPUs at boot, with NVIDIA's nvattest; only its measured "
        "software proves it",
    ),
    skipped("gpu_revocation", "left to the guest at boot: no OCSP answers"),
    skipped("gpu_rim", "left to the guest at boot: no reference manifests"),
    skipped("gpu_measurements", "left to the guest at boot: no measurements"),
    skipped("gpu_topology", "modes and connections were not checked: nvattest does not state them"),
)


class NvattestOutput(NamedTuple):
    """Output of nvattest; its parts are consistent, but it is **not authenticated**."""

    raw: bytes  # as received; what a measured hash covers
    result_code: int  # 0 if the program succeeded
    result_message: str
    overall_result: bool
    overall_claims: Mapping[str, Any]
    devices: tuple[DeviceClaims, ...]
    eat: DetachedEat
    is_authenticated: Literal[False] = False

    @property
    def sha256(self) -> bytes:
        """The SHA-256 of the output, 32 bytes."""
        return sha256(self.raw)

    def check(self, devices: int | None = None, nonce: bytes | None = None) -> None:
        """Check that nvattest accepted all devices. The output's hash must have been verified.

        Args:
            devices: Required number of devices; None accepts any.
            nonce: Required nonce of all claims, 32 bytes; None accepts any.

        Raises:
            GpuEvidenceError: If a device was not accepted (`nras_result`), or a nonce
                (`nras_nonce`) or the number of devices (`device_count`) is not the required one.
        """
        if devices is not None and len(self.devices) != devices:
            message = f"{_SUBJECT}: must have {devices} devices, not {len(self.devices)}"
            raise GpuEvidenceError(message, reason="device_count")
        if self.result_code != 0 or not self.overall_result:
            problem = f"the program did not accept the GPUs: result {self.result_code}"
            message = f"{_SUBJECT}: {problem}: {self.result_message}"
            raise GpuEvidenceError(message, reason="nras_result")
        for at, device in enumerate(self.devices):
            if problems := device.problems():
                message = f"{_SUBJECT}: {device.name}: {', '.join(problems)[:500]}"
                raise GpuEvidenceError(message, reason="nras_result", device=at)
            if nonce is not None and not hmac.compare_digest(device.nonce or b"", nonce):
                message = f"{_SUBJECT}: {device.name}: the nonce must be {nonce.hex()}"
                raise GpuEvidenceError(message, reason="nras_nonce", device=at)


def read_nvattest_output(data: bytes) -> NvattestOutput:
    """Read output of `nvattest attest`; nothing is authenticated.

    Args:
        data: JSON with claims, detached_eat, result_code and result_message, at most 1 MiB.

    Raises:
        FormatError: If the output is malformed, a token has a signature or an issuer other than
            `LOCAL_ISSUER`, or claims, nonces and tokens contradict each other.
        GpuEvidenceError: If the program failed and wrote no tokens (`nras_result`), or tokens and
            the hashes in the overall token differ (`nras_digest`).
    """
    if len(data) > MAX_OUTPUT:
        raise _bad(f"{len(data)} bytes, at most {MAX_OUTPUT}", "too_large")
    fields = strict_json.read_object(data, _SUBJECT)
    if unknown := fields.keys() - _KEYS:
        raise _bad(f"unknown member {one_line(min(unknown), 64)!r}", "unknown_field")
    code = fields.get("result_code")
    if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code < 1 << 31:
        problem = "result_code: must be 0 to 2147483647"
        raise _bad(problem, "missing" if code is None else "wrong_value")
    message = one_line(
        strict_json.string(fields, "result_message", "", what=_SUBJECT), _MAX_MESSAGE
    )
    if code != 0 and fields.get("detached_eat") is None:
        problem = f"the verification failed: result {code}: {message}"
        raise GpuEvidenceError(f"{_SUBJECT}: {problem}", reason="nras_result")
    eat = read_bundle(fields.get("detached_eat"))
    overall = _payload(eat.overall, "overall token")
    check_digests(overall, eat.devices, LOCAL_DIGESTS)
    payloads = {name: _payload(token, name) for name, token in eat.devices.items()}
    _check_claims(fields.get("claims"), payloads)
    devices = tuple(read_claims(claims, name) for name, claims in payloads.items())
    nonce = strict_json.from_hex(overall.get("eat_nonce"), f"{_SUBJECT}: eat_nonce", 32)
    nonces = {device.nonce for device in devices} | {nonce}
    if len(nonces) != 1 or None in nonces:
        raise _bad("nonces of the tokens must be equal", "inconsistent")
    return NvattestOutput(data, code, message, _result(overall), overall, devices, eat)


def _payload(token: bytes, name: str) -> dict[str, Any]:
    """Return the claims of an unsigned token; `name` is the token's name in errors."""
    jws = read_token(token, name)
    if jws.header != {"alg": "none"} or jws.signature:
        problem = f"{name}: must have alg none and no signature; verify signed tokens instead"
        raise _bad(problem, "unsupported")
    claims = jws.read_payload()
    if claims.get("iss") != LOCAL_ISSUER:
        raise _bad(f"{name}: the issuer must be {LOCAL_ISSUER}", "wrong_value")
    return claims


def _check_claims(value: object, payloads: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that `value`, the output's list of claims, has those of the tokens in any order.

    `payloads` are the tokens' claims by name of the device.
    """
    if not isinstance(value, list) or len(value) > MAX_DEVICES:
        raise _bad(f"claims: must be a list of at most {MAX_DEVICES} devices", "wrong_type")
    ours = [
        {name: claim for name, claim in claims.items() if name not in _TOKEN_CLAIMS}
        for claims in payloads.values()
    ]
    if _sorted(value) != _sorted(ours):
        raise _bad("claims: must be those of the tokens", "inconsistent")


def _sorted(items: list[Any]) -> list[str]:
    return sorted(json.dumps(item, sort_keys=True) for item in items)


def _result(claims: Mapping[str, Any]) -> bool:
    result = claims.get("x-nvidia-overall-att-result")
    if not isinstance(result, bool):
        raise _bad("x-nvidia-overall-att-result: must be true or false", "wrong_type")
    return result


def _bad(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"{_SUBJECT}: {problem}", reason=reason)


def appraise_boot_result(
    output: NvattestOutput, event: Mapping[str, Any], rules: GpuRules, now: datetime
) -> GpuResult:
    """Return the result for output of nvattest whose hash is in the verified event log.

    Args:
        output: The output, whose SHA-256 the caller has compared with that in the event.
        event: Payload of the event with the hash; its `devices` is the number of devices.
        rules: Rules of the policy; `allow_boot_result` must be true.
        now: Time of the verification.

    Raises:
        GpuEvidenceError: If nvattest or the rules do not accept a device, the number of devices is
            not that of the event (`device_count`), a device occurs twice or states no `ueid`
            (`topology`) or is of an unknown chip (`chip`), or the rules do not accept such output:
            without signatures (`binding`), modes (`modes`) or tokens of NVIDIA (`nras_result`).
    """
    if not rules.allow_boot_result:
        raise _refused("without signatures", "binding", "gpu.allow_boot_result must be true")
    if not rules.allow_mpt:
        raise _refused("which states no modes", "modes", "gpu.allow_mpt is false")
    if rules.nras != "off":
        raise _refused("without signed tokens", "nras_result", f"gpu.nras is {rules.nras}")
    count = event.get("devices")
    if type(count) is not int:
        message = "GPU evidence: measured event: devices: must be an integer, their number"
        raise GpuEvidenceError(message, reason="device_count")
    output.check(devices=count)
    _check_distinct(output.devices)
    devices = tuple(_device(at, claims) for at, claims in enumerate(output.devices))
    return GpuResult(
        devices=devices,
        steps=(*_BY_GUEST, *rules.appraise(devices)),
        nonce=devices[0].nonce,
        simulated=False,  # the evidence of the CPU decides
        verified_at=now,
        evidence_sha256=output.sha256,
    )


def _check_distinct(devices: Sequence[DeviceClaims]) -> None:
    labels = [DeviceLabel(claims.kind, at) for at, claims in enumerate(devices)]
    seen: dict[str, DeviceLabel] = {}
    for label, claims in zip(labels, devices, strict=True):
        if not claims.ueid:
            raise label.error("nvattest's claims must state its ueid", "topology")
        if seen.setdefault(claims.ueid, label) != label:
            raise label.error(f"is the same device as {seen[claims.ueid]}", "topology")


def _refused(lack: str, reason: GpuReason, rule: str) -> GpuEvidenceError:
    message = (
        f"GPU evidence: the policy does not accept the boot result of nvattest, {lack}: {rule}; "
        "request evidence of the GPUs, or change the policy"
    )
    return GpuEvidenceError(message, reason=reason, by_policy=True)


def _device(position: int, claims: DeviceClaims) -> DeviceResult:
    chip = chip_of(claims.hardware_model or "")
    if chip is None:
        message = f"GPU {position}: unknown chip in hwmodel of the claims; update attestkit"
        raise GpuEvidenceError(message, reason="chip", device=position)
    return DeviceResult(
        position=position,
        kind=claims.kind,
        chip=chip.name,
        architecture=chip.architecture,
        driver_version=claims.driver_version,
        vbios_version=claims.vbios_version or "",
        device_serial="",
        pdi=b"",
        ueid=claims.ueid or "",
        mode=None,
        nvdec0=None,
        nonce=claims.nonce or b"",
        matched=0,
    )
