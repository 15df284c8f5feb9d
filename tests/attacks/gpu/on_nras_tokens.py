"""Attempts on tokens of NVIDIA's attestation service."""

from typing import Any, Final

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.errors import FormatError, GpuEvidenceError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.nras.tokens import verify_tokens
from attestkit.gpu.result import GpuResult
from attestkit.gpu.rules import GpuRules
from tests.attacks.attempts import Surfaces, bound
from tests.attacks.gpu.on_manifests import GPUS, MODEL, OWN
from tests.gpu.nras import nras_tokens as nras
from tests.gpu.simulated_machine import NONCE, NOW, verify_machine

attacks = Surfaces("gpu")


def check_tokens(answer: bytes, **options: Any) -> object:
    """Verify tokens of the service's key."""
    return verify_tokens(answer, nras.jwks(), nras.NONCE, nras.NOW, **options)


assert check_tokens(nras.answer())
DEVICE: Final = nras.device_claims()
TOKEN: Final = nras.sign(nras.HEADER, DEVICE)


def overall_of(devices: dict[str, str]) -> str:
    """Return the overall token that names these tokens."""
    return nras.sign(nras.HEADER, nras.overall_claims(devices))


def bundle_of(devices: dict[str, str], overall: str = "") -> bytes:
    """Return a bundle; by default its overall token names these tokens."""
    return nras.bundle(overall or overall_of(devices), devices)


@attacks.attempt("confuse", GpuEvidenceError, "nras_digest", "nras_result")
def overall_token_as_that_of_a_device() -> object:
    """A token that the service signed, in the place of another kind."""
    overall = overall_of({"GPU-0": TOKEN})
    return check_tokens(bundle_of({"GPU-0": overall}))


@attacks.attempt("confuse", FormatError, "missing")
def token_of_a_device_as_the_overall_one() -> object:
    """The token of a device, which has no result."""
    return check_tokens(nras.bundle(TOKEN, {"GPU-0": TOKEN}))


@attacks.attempt("recombine", GpuEvidenceError, "nras_digest")
def overall_token_of_another_request() -> object:
    """Overall token and token of a device of two answers to the same nonce."""
    other = nras.sign(nras.HEADER, {**DEVICE, "ueid": "1"})
    return check_tokens(
        bundle_of({"GPU-0": TOKEN}, nras.sign(nras.HEADER, nras.overall_claims({"GPU-0": other})))
    )


@attacks.attempt("recombine", GpuEvidenceError, "nras_digest")
def token_under_the_name_of_another_device() -> object:
    """Two accepted devices, whose tokens are exchanged."""
    second = nras.sign(nras.HEADER, {**DEVICE, "ueid": "1"})
    overall = nras.overall_claims({"GPU-0": TOKEN, "GPU-1": second})
    return check_tokens(
        bundle_of({"GPU-0": second, "GPU-1": TOKEN}, nras.sign(nras.HEADER, overall))
    )


@attacks.attempt("confuse", FormatError, "inconsistent")
def token_of_a_gpu_as_that_of_a_switch() -> object:
    """Claims about a switch need no manifest of a driver."""
    return check_tokens(
        bundle_of({"SWITCH-0": nras.sign(nras.HEADER, {**DEVICE, "x-nvidia-device-type": "gpu"})})
    )


def machine_with_tokens(**claims: Any) -> GpuResult:
    """Verify a machine by tokens of the service's key about it, with other claims."""
    name = claims.pop("name", "GPU-0")
    kind = "switch" if name.startswith("SWITCH") else "gpu"
    stated = nras.device_claims(kind=kind, nonce=NONCE)
    seconds = int(NOW.timestamp())
    times = {"iat": seconds, "nbf": seconds, "exp": seconds + 3600}
    leaf = read_path_certificate(OWN.device.chain[0])
    prefix = f"x-nvidia-{kind}-"
    about = {
        f"{prefix}driver-version": MODEL.driver,
        f"{prefix}{'bios' if kind == 'switch' else 'vbios'}-version": MODEL.vbios,
        "ueid": str(leaf.serial),
    }
    token = nras.sign(nras.HEADER, {**stated, **times, **about, **claims})
    overall = nras.overall_claims({name: token}, **times, eat_nonce=NONCE.hex())
    answer = nras.bundle(nras.sign(nras.HEADER, overall), {name: token})
    found = GpuEndorsements(jwks=nras.jwks(), nras=(answer,))
    return verify_machine(GPUS, endorsements=found, rules=GpuRules(nras="instead"))


assert machine_with_tokens().nras
attacks.add(
    "confuse",
    "token about a switch for a GPU",
    bound(machine_with_tokens, name="SWITCH-0"),
    GpuEvidenceError,
    "nras_result",
)
CLAIMS: Final[dict[str, dict[str, Any]]] = {
    "of another device": {"ueid": "478176379286082186618948445787393647364802107249"},
    "with the serial number in another notation": {
        "ueid": f"0{read_path_certificate(OWN.device.chain[0]).serial}"
    },
    "of an older driver": {"x-nvidia-gpu-driver-version": "535.1"},
    "of another VBIOS": {"x-nvidia-gpu-vbios-version": "96.00.00.00.00"},
    "without a driver": {"x-nvidia-gpu-driver-version": None},
    "with debugging on": {"dbgstat": "enabled"},
    "with debugging not stated": {"dbgstat": None},
    "without secure boot": {"secboot": None},
    "with a result in other letters": {"measres": "Success"},
    "with a list of differences": {"x-nvidia-mismatch-measurement-records": [{}]},
    "with an error of the service": {"x-nvidia-error-details": {"code": 4010, "message": ""}},
    "with an unchecked nonce": {"x-nvidia-gpu-attestation-report-nonce-match": None},
    "with a flag as text": {"x-nvidia-gpu-arch-check": "true"},
    "with a flag as a number": {"secboot": 1},
    "with a revoked chain": {
        "x-nvidia-gpu-attestation-report-cert-chain": nras.chain(ocsp_status="revoked")
    },
    "with a chain on hold": {
        "x-nvidia-gpu-attestation-report-cert-chain": nras.chain(
            status="revoked", ocsp_status="revoked", revocation_reason="certificateHold"
        )
    },
}
for _name, _claims in CLAIMS.items():
    attacks.add(
        "recombine" if "other" in _name else "forge",
        f"token {_name}",
        bound(machine_with_tokens, **_claims),
        GpuEvidenceError,
        "nras_result",
    )

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "its own key": {"jwk": nras.jwk("attacker", x5c=False)},
    "an address of keys": {"jku": "https://evil.example/jwks"},
    "a critical extension": {"crit": ["exp"]},
    "an algorithm in lower case": {"alg": "es384"},
    "certificates": {"x5c": nras.jwk()["x5c"]},
    "compression": {"zip": "DEF"},
}
for _name, _header in HEADERS.items():
    attacks.add(
        "forge",
        f"token whose header has {_name}",
        bound(
            check_tokens,
            nras.bundle(
                nras.sign({**nras.HEADER, **_header}, nras.overall_claims({"GPU-0": TOKEN})),
                {"GPU-0": TOKEN},
            ),
        ),
        GpuEvidenceError,
        "nras_signature",
    )
