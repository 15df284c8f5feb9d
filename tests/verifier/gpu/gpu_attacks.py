"""Recombinations of genuine evidence of CPUs and GPUs, as an attacker makes them.

All devices are of the same vendors, whose roots the verifier trusts. The attacker has a guest and
GPUs of its own, records what others send, chooses the endorsements, and cannot forge signatures.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any, Final, NamedTuple

import attestkit
from attestkit.attestation import Attestation
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.gpu import DeviceEvidence, GpuEndorsements, GpuEvidence
from attestkit.gpu.rules import GpuRules
from attestkit.report_data import ReportData, gpu_nonce

SEED: Final = b"\x27" * 32
NONCE: Final = bytes(range(100, 132))  # of the verifier
OLD: Final = bytes(range(32))  # of an earlier verification
DAY: Final = 86_400


class Given(NamedTuple):
    """The attacker's evidence and endorsements, and the rules of the verifier."""

    evidence: Attestation
    gpu: GpuEvidence | bytes | None = None  # beside the evidence
    endorsements: GpuEndorsements | None = None  # None: those of the genuine machine
    rules: GpuRules = GpuRules()


@cache
def guest(**options: Any) -> Any:
    """Return a guest of the same vendors; by default the genuine one, with two GPUs."""
    return attestkit.open("simulator", **{"seed": SEED, "gpus": 2, **options})


@cache
def gpus_of(
    count: int | None = None, architecture: Any = None, fault: str | None = None
) -> SimulatedGpus:
    """Return GPUs of the same vendors."""
    found = guest(gpus=GpuConfig(count, architecture=architecture, fault=fault)).backend.gpus
    assert isinstance(found, SimulatedGpus)
    return found


def genuine(nonce: bytes = gpu_nonce(NONCE)) -> GpuEvidence:
    """Return evidence of the genuine machine's GPUs."""
    return gpus_of(2).evidence(nonce)


def foreign(nonce: bytes = gpu_nonce(NONCE)) -> GpuEvidence:
    """Return genuine evidence of two GPUs of another machine."""
    return GpuEvidence(gpus_of(4).evidence(nonce).devices[2:])


def plain(nonce: bytes = NONCE) -> Attestation:
    """Return evidence of a CPU over the nonce alone."""
    found = guest().attest(nonce=nonce)
    assert isinstance(found, Attestation)
    return found


def unmeasured() -> Attestation:
    """Return evidence of a CPU whose event log has nothing about GPUs."""
    found = guest(gpus=None).attest(nonce=NONCE)
    assert isinstance(found, Attestation)
    return found


def committed(gpu: GpuEvidence, nonce: bytes = NONCE) -> Attestation:
    """Return evidence of a CPU whose guest commits to any evidence of GPUs, which it encloses."""
    report_data = ReportData.for_nonce_and_gpu(nonce, gpu.raw)
    found = guest().attest(report_data=report_data)
    assert isinstance(found, Attestation)
    return found.with_gpu_evidence(gpu)


def endorsements(of: SimulatedGpus, after: float = 0) -> GpuEndorsements:
    """Return endorsements of some GPUs, made some seconds from now."""
    now = guest().backend.unix_time()
    return of.endorsements(now + after)


def mixed(*evidence: GpuEvidence) -> GpuEvidence:
    """Return the devices of all."""
    return GpuEvidence(tuple([device for each in evidence for device in each.devices]))


def joined(*found: GpuEndorsements) -> GpuEndorsements:
    """Return the endorsements of all."""
    rims = {name: rim for each in found for name, rim in each.rims.items()}
    return GpuEndorsements(rims, tuple([answer for each in found for answer in each.ocsp]))


def with_first(gpu: GpuEvidence, change: Callable[[DeviceEvidence], dict[str, Any]]) -> GpuEvidence:
    """Return evidence whose first device has other members."""
    first, *others = gpu.devices
    return GpuEvidence((replace(first, **change(first)), *others))


def boot(**rules: Any) -> Given:
    """Return the result of nvattest of the boot, which the event log has."""
    return Given(plain(), guest().backend.gpu_boot_evidence(), rules=GpuRules(**rules))


def of_fault(name: str, **rules: Any) -> Given:
    """Return evidence of GPUs with a fault, with their endorsements, bound to the CPU."""
    gpus = gpus_of(fault=name)
    evidence = committed(gpus.evidence(gpu_nonce(NONCE)))
    return Given(evidence, endorsements=endorsements(gpus), rules=GpuRules(**rules))


def _same_identity_twice() -> Given:
    first = genuine().devices[0]
    again = replace(first, report=gpus_of(2).report(gpus_of(2).devices[0], gpu_nonce(NONCE)))
    return Given(committed(GpuEvidence((first, again))))


def _mixed_architectures() -> Given:
    blackwell = gpus_of(4, "BLACKWELL")
    others = GpuEvidence(blackwell.evidence(gpu_nonce(NONCE)).devices[2:])
    gpu = mixed(genuine(), others)
    found = joined(endorsements(gpus_of(2)), endorsements(blackwell))
    return Given(committed(gpu), endorsements=found)


def _protected(*positions: int) -> GpuEvidence:
    """Return the devices at these positions of a machine with 8 GPUs and 4 switches."""
    devices = gpus_of(8).evidence(gpu_nonce(NONCE)).devices
    return GpuEvidence(tuple([devices[at] for at in positions]))


def _with_protected(*positions: int, **rules: Any) -> Given:
    found = endorsements(gpus_of(8))
    return Given(committed(_protected(*positions)), endorsements=found, rules=GpuRules(**rules))


def _rim_of_vbios_as_driver() -> Given:
    rims = dict(endorsements(gpus_of(2)).rims)
    driver, vbios = sorted(rims)  # NV_GPU_DRIVER_…, NV_GPU_VBIOS_…
    rims[driver] = rims[vbios]
    found = replace(endorsements(gpus_of(2)), rims=rims)
    return Given(committed(genuine()), endorsements=found)


def _with_endorsements(found: GpuEndorsements, **rules: Any) -> Given:
    return Given(committed(genuine()), endorsements=found, rules=GpuRules(**rules))


def _good_beside_revoked() -> Given:
    revoked = gpus_of(fault="ocsp-brom-revoked")
    good, bad = endorsements(gpus_of(1), 60), endorsements(revoked)
    evidence = committed(revoked.evidence(gpu_nonce(NONCE)))
    return Given(evidence, endorsements=joined(good, bad))


def _own_keys_of_nras() -> Given:
    attacker = attestkit.open("simulator", seed=b"\x28" * 32, gpus=2).backend.gpus
    now = guest().backend.unix_time()
    tokens = attacker.endorsements(now, gpu_nonce(NONCE))
    return _with_endorsements(
        replace(endorsements(gpus_of(2)), nras=tokens.nras, jwks=tokens.jwks), nras="instead"
    )


_STALE: Final = -3 * DAY
_GRACE: Final = timedelta(days=1)
_STRICT: Final = GpuRules(binding="report_data")


class Attack(NamedTuple):
    """An attack, and the reason why it is refused; `code` is the exit code of the program."""

    make: Callable[[], Given]
    reason: str
    code: int = 2  # 2 evidence, 3 endorsements missing, 4 policy


ATTACKS: Final[dict[str, Attack]] = {
    # Other evidence beside a quote that commits to the GPUs.
    "gpus of another machine": Attack(
        lambda: Given(committed(genuine()).with_gpu_evidence(foreign())), "report_data", 4
    ),
    "fewer gpus": Attack(
        lambda: Given(committed(genuine()).with_gpu_evidence(GpuEvidence(genuine().devices[:1]))),
        "report_data",
        4,
    ),
    "more gpus": Attack(
        lambda: Given(committed(genuine()).with_gpu_evidence(mixed(genuine(), foreign()))),
        "report_data",
        4,
    ),
    "gpus in another order": Attack(
        lambda: Given(committed(genuine()).with_gpu_evidence(GpuEvidence(genuine().devices[::-1]))),
        "report_data",
        4,
    ),
    "gpus left out": Attack(
        lambda: Given(committed(genuine()).with_gpu_evidence(None)), "report_data", 4
    ),
    "all of it replayed": Attack(
        lambda: Given(committed(genuine(gpu_nonce(OLD)), OLD)), "report_data", 4
    ),
    "old quote with new gpus": Attack(
        lambda: Given(committed(genuine(), OLD).with_gpu_evidence(genuine())), "report_data", 4
    ),
    # A guest that commits to evidence of GPUs that are not its own.
    "replayed gpus in a new quote": Attack(lambda: Given(committed(genuine(OLD))), "nonce"),
    "nonce not derived for gpus": Attack(lambda: Given(committed(genuine(NONCE))), "nonce"),
    "nonces mixed": Attack(
        lambda: Given(
            committed(GpuEvidence((genuine().devices[0], genuine(gpu_nonce(OLD)).devices[1])))
        ),
        "nonce",
    ),
    "report of another device": Attack(
        lambda: Given(
            committed(with_first(genuine(), lambda _: {"report": foreign().devices[0].report}))
        ),
        "report_signature",
    ),
    "chain of another device": Attack(
        lambda: Given(
            committed(
                with_first(genuine(), lambda _: {"certificates": foreign().devices[0].certificates})
            )
        ),
        "report_signature",
    ),
    "leaf below another boot rom": Attack(
        lambda: Given(
            committed(
                with_first(
                    genuine(),
                    lambda one: {
                        "certificates": (
                            one.certificates[0],
                            *foreign().devices[0].certificates[1:],
                        )
                    },
                )
            )
        ),
        "device_chain",
    ),
    "leaf alone": Attack(
        lambda: Given(
            committed(with_first(genuine(), lambda one: {"certificates": one.certificates[:1]}))
        ),
        "device_chain",
    ),
    "chain without its CAs": Attack(
        lambda: Given(
            committed(with_first(genuine(), lambda one: {"certificates": one.certificates[:2]}))
        ),
        "device_chain",
    ),
    "report with a byte more": Attack(
        lambda: Given(committed(with_first(genuine(), lambda one: {"report": one.report + b"\0"}))),
        "format",
    ),
    "architecture of another chip": Attack(
        lambda: Given(committed(with_first(genuine(), lambda _: {"architecture": "BLACKWELL"}))),
        "device_chain",
    ),
    "mixed architectures": Attack(_mixed_architectures, "modes"),
    "one gpu twice": Attack(
        lambda: Given(committed(GpuEvidence(genuine().devices[:1] * 2))), "topology"
    ),
    "two reports of one gpu": Attack(_same_identity_twice, "topology"),
    "a switch missing": Attack(lambda: _with_protected(*range(11)), "topology"),
    "a gpu missing": Attack(lambda: _with_protected(*range(1, 12)), "topology"),
    "switches left out": Attack(
        lambda: _with_protected(*range(8), protected_pcie=True), "topology", 4
    ),
    "switches alone": Attack(
        lambda: _with_protected(*range(8, 12), required=True), "device_count", 4
    ),
    # A quote over the nonce alone.
    "replayed gpus beside a new quote": Attack(lambda: Given(plain(), genuine(OLD)), "nonce"),
    "relayed gpus, by rule": Attack(
        lambda: Given(plain(), foreign(), endorsements(gpus_of(4)), _STRICT), "binding", 4
    ),
    "no gpus, by rule": Attack(
        lambda: Given(plain(), rules=GpuRules(required=True)), "device_count", 4
    ),
    "result of the boot": Attack(boot, "binding", 4),
    "result of the boot of another machine": Attack(
        lambda: boot()._replace(
            gpu=guest(gpus=4).backend.gpu_boot_evidence(), rules=GpuRules(allow_boot_result=True)
        ),
        "binding",
    ),
    "result of the boot, strict binding": Attack(
        lambda: boot(allow_boot_result=True, binding="report_data"), "binding", 4
    ),
    "gpus whose ready state was not measured": Attack(
        lambda: Given(unmeasured(), genuine(NONCE), rules=GpuRules(ready_state=True)), "modes", 4
    ),
    # Endorsements that the attacker chooses.
    "no endorsements": Attack(lambda: _with_endorsements(GpuEndorsements()), "missing", 3),
    "no OCSP answers": Attack(
        lambda: _with_endorsements(replace(endorsements(gpus_of(2)), ocsp=())), "missing", 3
    ),
    "OCSP answers about other devices": Attack(
        lambda: _with_endorsements(
            replace(
                endorsements(gpus_of(2)),
                ocsp=endorsements(gpus_of(1, "BLACKWELL")).ocsp,
            )
        ),
        "device_ocsp",
    ),
    "stale OCSP answers": Attack(
        lambda: _with_endorsements(endorsements(gpus_of(2), _STALE)), "device_ocsp"
    ),
    "OCSP answers past the grace": Attack(
        lambda: _with_endorsements(endorsements(gpus_of(2), _STALE), ocsp_grace=_GRACE),
        "device_ocsp",
    ),
    "OCSP answers of the future": Attack(
        lambda: _with_endorsements(endorsements(gpus_of(2), DAY)), "device_ocsp"
    ),
    "OCSP answers older than a rule allows": Attack(
        lambda: _with_endorsements(
            endorsements(gpus_of(2), -DAY / 2), max_ocsp_age=timedelta(hours=6)
        ),
        "device_ocsp",
    ),
    "good answer beside a revocation": Attack(_good_beside_revoked, "device_ocsp"),
    "device revoked, hold allowed": Attack(
        lambda: of_fault("ocsp-brom-revoked", allow_hold=True), "device_ocsp"
    ),
    "signer on hold": Attack(lambda: of_fault("ocsp-rim-leaf-hold"), "driver_rim_ocsp"),
    "manifests of another chip": Attack(
        lambda: _with_endorsements(
            replace(endorsements(gpus_of(2)), rims=endorsements(gpus_of(1, "BLACKWELL")).rims)
        ),
        "missing",
        3,
    ),
    "manifest of another version": Attack(
        lambda: _with_endorsements(
            replace(
                endorsements(gpus_of(2)),
                rims=endorsements(gpus_of(fault="rim-driver-version")).rims,
            )
        ),
        "driver_rim_identity",
    ),
    "manifest of the VBIOS as that of the driver": Attack(
        _rim_of_vbios_as_driver, "driver_rim_identity"
    ),
    "manifest under another root": Attack(lambda: of_fault("rim-other-root"), "driver_rim_chain"),
    "device under another root": Attack(lambda: of_fault("chain-other-root"), "device_chain"),
    "firmware that no manifest has": Attack(lambda: of_fault("measurement-9"), "measurements"),
    "tokens of the attacker": Attack(_own_keys_of_nras, "missing", 3),
}
