"""Attempts on what joins the evidence of GPUs with that of a CPU, and on policies about them."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, Final

from attestkit._formats.compact_jws import to_base64url
from attestkit.attestation import Attestation
from attestkit.errors import ConfigError, FormatError, GpuEvidenceError, PolicyError, UsageError
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import GpuEvidence
from attestkit.gpu.rules import GpuRules
from attestkit.report_data import ReportData, gpu_nonce
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.result import AttestationResult
from tests.attacks.attempts import Surfaces, bound
from tests.gpu.simulated_machine import machine
from tests.verifier.gpu import test_gpu_join as join
from tests.verifier.platforms import intel

attacks = Surfaces("gpu")
NONCE: Final = join.CHALLENGE
GPUS: Final = join.GPUS
OLD: Final = bytes(32)
assert join.with_rules(required=True).verify(join.bound(), nonce=NONCE).gpu


# -- events of the boot ------------------------------------------------------------------------

BOOT: Final = GPUS.evidence(b"\x0b" * 32)


def booted(*events: tuple[str, bytes], gpu: GpuEvidence = BOOT, **rules: Any) -> AttestationResult:
    """Verify evidence of GPUs as of boot beside a CPU with these events."""
    evidence = intel.evidence(events, report_data=ReportData.for_nonce(NONCE))
    rules = {"allow_runtime_event": True, "binding": "runtime_event", **rules}
    return join.with_rules(**rules).verify(evidence, nonce=NONCE, gpu=gpu)


EVENTS: Final = join.boot_event(BOOT.raw)
AT: Final = [name for name, _ in EVENTS].index("gpu-attestation")
NAME, PAYLOAD = EVENTS[AT]
OTHERS: Final = tuple(event for event in EVENTS if event[0] != NAME)
assert booted(*EVENTS).gpu


def in_place(*events: tuple[str, bytes]) -> Callable[[], AttestationResult]:
    """Return a verification with these events in place of the one about GPUs."""
    return bound(booted, *EVENTS[:AT], *events, *EVENTS[AT + 1 :])


LOGS: Final[dict[str, Callable[[], object]]] = {
    "event about GPUs that the app emits": bound(booted, *OTHERS, (NAME, PAYLOAD)),
    "two events about GPUs": in_place((NAME, PAYLOAD), (NAME, PAYLOAD)),
    "event about GPUs that the host's comes before": in_place((NAME, b"{}"), (NAME, PAYLOAD)),
    "event with a name in other letters": in_place((NAME.upper(), PAYLOAD)),
    "event with a name with a space": in_place((f"{NAME} ", PAYLOAD)),
    "event with a hash twice": in_place(
        (NAME, PAYLOAD.replace(b'"version"', b'"evidence_sha256": "00", "version"'))
    ),
    "event with a hash in capitals": in_place(
        (NAME, json.dumps({**json.loads(PAYLOAD), "evidence_sha256": BOOT.raw.hex()}).encode())
    ),
    "event with text behind it": in_place((NAME, PAYLOAD + b"{}")),
    "event as an array": in_place((NAME, b"[" + PAYLOAD + b"]")),
    "same devices in other JSON": bound(
        booted, *EVENTS, gpu=GpuEvidence.from_json(b" " + BOOT.raw)
    ),
}
# Without the event there is only the nonce, which evidence of the boot does not have.
for _name, _run in LOGS.items():
    attacks.add("confuse", _name, _run, GpuEvidenceError, "nonce", "binding")


def _ready(**changes: object) -> AttestationResult:
    return booted(*join.boot_event(BOOT.raw, **changes), ready_state=True)


assert _ready().gpu
STATES: Final[dict[str, dict[str, Any]]] = {
    "devtools as a number": {"devtools": 0},
    "devtools as nothing": {"devtools": None},
    "devtools on": {"devtools": True},
    "mode in capitals": {"cc_mode": "ON"},
    "mode as true": {"cc_mode": True},
    "mode for development": {"cc_mode": "devtools"},
}
for _name, _changes in STATES.items():
    attacks.add(
        "confuse",
        f"ready state with {_name}",
        bound(_ready, **_changes),
        GpuEvidenceError,
        "modes",
    )


@cache
def boot_output() -> bytes:
    """Return the output of nvattest at boot."""
    return GPUS.boot_output


def from_boot(raw: bytes, event: bytes | None = None, **changes: object) -> AttestationResult:
    """Verify a result of the boot, whose hash the event has."""
    events = join.boot_event(boot_output() if event is None else event, **changes)
    evidence = intel.evidence(events, report_data=ReportData.for_nonce(NONCE))
    return join.with_rules(allow_boot_result=True).verify(evidence, nonce=NONCE, gpu=raw)


assert from_boot(boot_output()).gpu


@attacks.attempt("replay", GpuEvidenceError, "binding")
def result_of_the_boot_with_a_line_end() -> AttestationResult:
    """The hash covers every byte of the file."""
    return from_boot(boot_output() + b"\n")


@attacks.attempt("confuse", GpuEvidenceError, "device_count")
def result_of_the_boot_for_a_number_as_text() -> AttestationResult:
    """The number of devices is a number."""
    return from_boot(boot_output(), devices="2")


@attacks.attempt("confuse", GpuEvidenceError, "device_count")
def result_of_the_boot_for_more_devices() -> AttestationResult:
    """The guest counted three devices, and two were verified."""
    return from_boot(boot_output(), devices=3)


def altered_output(change: Callable[[Any], object]) -> AttestationResult:
    """Verify a result of the boot that a hostile guest wrote and measured."""
    found = json.loads(boot_output())
    change(found)
    raw = json.dumps(found).encode()
    return from_boot(raw, raw)


assert altered_output(dict).gpu
OUTPUTS: Final[dict[str, tuple[Callable[[Any], object], type[Any], str]]] = {
    "another code": (lambda found: found.update(result_code=1), GpuEvidenceError, "nras_result"),
    "claims that are not those of a token": (
        lambda found: found["claims"][0].update(measres="fail"),
        FormatError,
        "inconsistent",
    ),
    "the claims of one device": (
        lambda found: found["claims"].pop(),
        FormatError,
        "inconsistent",
    ),
    "the token of one device": (
        lambda found: found["detached_eat"][1].pop("GPU-1"),
        GpuEvidenceError,
        "nras_digest",
    ),
    "one token twice": (
        lambda found: found["detached_eat"][1].update({"GPU-1": found["detached_eat"][1]["GPU-0"]}),
        GpuEvidenceError,
        "nras_digest",
    ),
    "a code as text": (lambda found: found.update(result_code="0"), FormatError, "wrong_value"),
    "a code as false": (lambda found: found.update(result_code=False), FormatError, "wrong_value"),
    "an unknown member": (lambda found: found.update(trusted=True), FormatError, "unknown_field"),
    "a signature": (
        lambda found: found["detached_eat"][0].__setitem__(
            1, found["detached_eat"][0][1] + to_base64url(bytes(96))
        ),
        FormatError,
        "unsupported",
    ),
}
for _name, (_change, _error, _reason) in OUTPUTS.items():
    name = f"result of the boot with {_name}"
    attacks.add("forge", name, bound(altered_output, _change), _error, _reason)


# -- report data and nonces --------------------------------------------------------------------


def given(evidence: Attestation, **options: Any) -> AttestationResult:
    """Verify evidence with GPUs."""
    return join.with_rules(required=True).verify(evidence, **{"nonce": NONCE, **options})


@attacks.attempt("relay", PolicyError, "report_data")
def commitment_to_the_evidence_as_another_json() -> AttestationResult:
    """The devices are the same, the bytes that the quote commits to are not."""
    own = join.own_evidence()
    spaced = GpuEvidence.from_json(own.raw.replace(b",", b", "))
    assert spaced.devices == own.devices
    return given(join.bound().with_gpu_evidence(spaced))


@attacks.attempt("replay", PolicyError, "report_data")
def nonce_of_the_gpus_as_that_of_the_verifier() -> AttestationResult:
    """The nonce that is derived for the GPUs is not one that the verifier chose."""
    return given(join.bound(), nonce=gpu_nonce(NONCE))


@attacks.attempt("relay", GpuEvidenceError, "nonce")
def gpus_of_a_nonce_that_is_a_hash() -> AttestationResult:
    """The victim's GPUs answered a nonce that is the derived one of another verifier."""
    relayed = GPUS.evidence(gpu_nonce(gpu_nonce(NONCE)))
    return given(join.unbound(), gpu=relayed)


@attacks.attempt("confuse", UsageError, "missing")
def gpus_without_a_nonce() -> AttestationResult:
    """Expected report data name no nonce that the GPUs must have."""
    report_data = ReportData.for_nonce(NONCE)
    return given(join.unbound(), nonce=None, report_data=report_data, gpu=GPUS.evidence(NONCE))


@attacks.attempt("confuse", GpuEvidenceError, "device_count")
def gpus_switched_off_where_they_are_required() -> AttestationResult:
    """An application that skips the GPUs does not skip the policy."""
    return given(join.bound(), gpu=False)


@attacks.attempt("relay", PolicyError, "report_data")
def gpus_enclosed_in_evidence_of_another_cpu() -> AttestationResult:
    """The quote of a CPU that has no GPUs, with the GPUs of a tenant."""
    return given(intel.evidence(report_data=bytes(64)).with_gpu_evidence(join.own_evidence()))


# -- policies ----------------------------------------------------------------------------------


def policy(text: str) -> AppraisalPolicy:
    """Read a policy."""
    return AppraisalPolicy.from_toml(f'preset = "strict"\n{text}')


assert policy('[gpu]\nrequired = true\nbinding = "report_data"\n').gpu.required
for _name, (_text, _reason) in {
    "rule in capitals": ("[gpu]\nRequired = true\n", "unknown_key"),
    "table in capitals": ("[GPU]\nrequired = true\n", "unknown_key"),
    "rule as text": ('[gpu]\nrequired = "true"\n', "wrong_type"),
    "rule that is misspelled": ('[gpu]\nbindings = "report_data"\n', "unknown_key"),
    "no accepted chip": ("[gpu]\nchips = []\n", "missing"),
    "binding that is unknown": ('[gpu]\nbinding = "strict"\n', "wrong_value"),
    "version with a word": ('[gpu]\nmin_driver = "550.90.07-rc1"\n', "wrong_value"),
    "number of GPUs as text": ('[gpu]\ncount = "8"\n', "wrong_type"),
    "rule twice": ("[gpu]\nrequired = true\nrequired = false\n", "syntax"),
    "table twice": ("[gpu]\nrequired = true\n[gpu]\nrequired = false\n", "syntax"),
    "rules outside of their table": ("required = true\n", "unknown_key"),
    "index above the last one": ("[gpu]\naccepted_mismatches = [64]\n", "wrong_value"),
    "period without a unit that is negative": ("[gpu]\nmax_ocsp_age = -1\n", "wrong_value"),
}.items():
    attacks.add("confuse", f"policy with a {_name}", bound(policy, _text), ConfigError, _reason)


@attacks.attempt("forge", GpuEvidenceError, "driver_version")
def driver_that_is_newer_as_text_only() -> object:
    """Versions are compared as numbers: 999.10 is above 999.9."""
    return join.with_rules(min_driver="999.100").verify(join.bound(), nonce=NONCE)


@attacks.attempt("relay", GpuEvidenceError, "topology")
def protected_mode_of_a_machine_without_switches() -> object:
    """The GPUs of a protected machine, without what connects them."""
    gpus = machine(8)
    found = GpuEvidence(gpus.evidence(gpu_nonce(NONCE)).devices[:8])
    evidence = intel.evidence(report_data=ReportData.for_nonce_and_gpu(NONCE, found.raw))
    own = GpuEndorsements(dict(gpus.rims), gpus.ocsp_answers(intel.NOW.timestamp()))
    rules = AppraisalPolicy.default().replace(gpu=GpuRules(protected_pcie=True))
    verifier = join.verifier(policy=rules, gpu_roots=gpus.roots, gpu_endorsements=own)
    return verifier.verify(evidence.with_gpu_evidence(found), nonce=NONCE)


@attacks.attempt("forge", GpuEvidenceError, "nonce")
def nonce_of_evidence_changed_after_reading() -> object:
    """A device of other evidence is put into evidence whose JSON was hashed."""
    own = join.own_evidence()
    forged = replace(own, devices=GPUS.evidence(OLD).devices)
    return given(join.bound(), gpu=forged)
