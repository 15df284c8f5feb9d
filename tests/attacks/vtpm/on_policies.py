"""Attempts with policy files about TPMs that look stricter than they are."""

from functools import partial
from typing import Final

from attestkit.errors import ConfigError
from attestkit.verifier import AppraisalPolicy
from tests.attacks.attempts import Surfaces

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
