"""Attempts with policy files about TPMs that look stricter than they are."""

from functools import partial
from typing import Final

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack
from attestkit.attester import Attester
from attestkit.errors import AttestKitError, ConfigError
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.attacks.attempts import Surfaces
from tests.attacks.vtpm import azure_vms, on_google, tpm_evidence
from tests.verifier.platforms import azure
from tests.verifier.platforms.test_azure_policy import BOUND, NONCE
from tests.verifier.platforms.vtpm import made_tpm

attacks = Surfaces("vtpm")

GOOD: Final = """
preset = "default"
platforms = ["gcp-snp"]
require_joins = ["hardware_to_ak"]
trusted_aks = ["{digest}"]
gce_zone = ["us-central1-a"]
pcrs = {{ "sha256:7" = "{digest}" }}
""".format(digest="ab" * 32)

DIGEST: Final = '"' + "ab" * 32 + '"'
LINES: Final = {
    "that lists no key": ("trusted_aks = [" + DIGEST, "trusted_aks = [] #"),
    "that lists an empty key": ("trusted_aks = [" + DIGEST, 'trusted_aks = [""'),
    "that lists half of a hash": ("trusted_aks = [" + DIGEST, 'trusted_aks = ["abab"'),
    "that requires no join by name": ('["hardware_to_ak"]', '["hardware to ak"]'),
    "that spells a rule in another way": ("require_joins", "require_join"),
    "that spells a rule in capitals": ("trusted_aks", "Trusted_AKs"),
    "that spells a rule with another letter": ("gce_zone", "gce_z\u043ene"),
    "that names no zone": ('["us-central1-a"]', "[]"),
    "that names an empty zone": ('["us-central1-a"]', '[""]'),
    "with PCRs of SHA-1": ("sha256:7", "sha1:7"),
    "with PCRs of a bank in capitals": ("sha256:7", "SHA256:7"),
    "with the number of a PCR in two digits": ("sha256:7", "sha256:07"),
    "with a PCR of a negative number": ("sha256:7", "sha256:-7"),
    "with a PCR in digits of another script": ("sha256:7", "sha256:\u0667"),
    "with no value of a PCR": (f'"sha256:7" = {DIGEST}', '"sha256:7" = []'),
    "with a short value of a PCR": (f'"sha256:7" = {DIGEST}', '"sha256:7" = "abab"'),
    "with the same PCR twice": (
        f'"sha256:7" = {DIGEST}',
        f'"sha256:7" = {DIGEST}, "sha256:7" = {DIGEST}',
    ),
    "with a rule twice": ("preset =", 'gce_zone = ["x"]\npreset ='),
    "for a platform that does not exist": ('["gcp-snp"]', '["gcp_snp"]'),
    "for no platform": ('["gcp-snp"]', "[]"),
    "of a preset that does not exist": ('"default"', '"strictest"'),
    "with a rule of a table of its own": ("gce_zone", "[vtpm]\ngce_zone"),
}
REASONS: Final = ("missing", "wrong_size", "wrong_value", "wrong_type", "unknown_key", "syntax")


def read(old: str, new: str) -> object:
    """Read a policy with a change that a person would overlook."""
    assert AppraisalPolicy.from_toml(GOOD).gce_zone == {"us-central1-a"}
    assert old in GOOD
    return AppraisalPolicy.from_toml(GOOD.replace(old, new))


for title, (old, new) in LINES.items():
    attacks.add("confuse", f"policy file {title}", partial(read, old, new), ConfigError, *REASONS)


@attacks.attempt("confuse", ConfigError, "conflict")
def rule_about_the_paravisor_beside_a_platform_without_one() -> object:
    """The rule would apply to no accepted evidence, and so to none at all."""
    text = GOOD + '\nparavisor_measurement = ["' + "ab" * 48 + '"]\n'
    return AppraisalPolicy.from_toml(text)


@attacks.attempt("confuse")
def join_that_is_text_and_no_list() -> None:
    """One name is a list of one, and not a collection of letters that match nothing."""
    text = GOOD.replace('["hardware_to_ak"]', '"hardware_to_ak"')
    assert AppraisalPolicy.from_toml(text).require_joins == {"hardware_to_ak"}


# -- events that nothing measured --------------------------------------------------------------

APP: Final = b"\x77" * 20
EVENTS: Final = (
    RuntimeEvent("app-id", APP),
    RuntimeEvent("compose-hash", bytes(32)),
    RuntimeEvent("system-ready", b""),
)
PINNED: Final = AppraisalPolicy.default().replace(
    platforms=("gcp-snp", "hcl-snp", "hcl-tdx", "tpm"), app_id=[APP]
)


def unmeasured(name: str, policy: AppraisalPolicy) -> AttestationResult:
    """Verify evidence of a guest that measures no app, beside events about the victim's app."""
    if name == "gcp-snp":
        simulator, _, good, _ = on_google.machine("snp")
        evidence = good.evidence._replace(stack=good.evidence.stack._replace(runtime_events=EVENTS))
        verifier = Attester(simulator).verifier(policy=policy)
        return verifier.verify(Attestation(evidence), nonce=on_google.NONCE)
    if name == "tpm":
        stack = Stack(tpm_evidence.BOUND, EVENTS, "{}")
        found = Attestation(Evidence(tpm_evidence.genuine(), stack))
        listed = policy.replace(trusted_aks=[made_tpm.SPKI], platforms=("tpm",))
        nonce, now = tpm_evidence.NONCE, tpm_evidence.NOW
        return Verifier(policy=listed).verify(found, nonce=nonce, now=now)
    platform = azure_vms.genuine(name[4:])
    found = Attestation(Evidence(platform, Stack(BOUND, EVENTS, "{}")))
    return azure.verifier(platform, policy=policy).verify(found, nonce=NONCE)


def pinned_app(name: str) -> object:
    """Verify under a policy that pins the app; without the pin, nothing is claimed of it."""
    result = unmeasured(name, PINNED.replace(app_id=None))
    assert result.claims.events == ()
    assert "app" in result.not_proven
    return unmeasured(name, PINNED)


for name in ("gcp-snp", "hcl-snp", "hcl-tdx", "tpm"):
    title = f"{name}: events of an app that nothing measured"
    attacks.add("forge", title, partial(pinned_app, name), AttestKitError, "app_id", "conflict")
