"""Policy rules about guests with a TPM: PCRs, attestation key, paravisor, and cloud instance."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final, TypeAlias, cast, get_args

from attestkit._argument_checks import check_text, normalize_members, require_members
from attestkit._crypto.hashes import sha256
from attestkit._outcomes.reasons import PolicyReason
from attestkit._outcomes.steps import StepCheck, VerificationStep, caution, passed
from attestkit._sanitize import shown
from attestkit._system.fork_safety import unlocked_property
from attestkit.errors import PolicyError, SignatureError, UsageError
from attestkit.verifier.claims import GOOGLE_CLAIMS, PARAVISOR_CLAIMS, Claims, Join, VtpmFacts
from attestkit.verifier.policy.pcr_rules import PcrRule, appraise_pcrs, normalize_pcrs
from attestkit.verifier.policy.platforms import (
    AZURE,
    GCP_SNP,
    GCP_TDX,
    GO_TPM_TOOLS,
    HCL,
    HCL_PLATFORMS,
    NITRO_TPM,
    SNP_PLATFORMS,
    VTPM_PLATFORMS,
    is_signed_by_vlek,
    is_snp,
    launch_measurement,
    vlek_provider,
)
from attestkit.verifier.policy.rules import Values, format_values, matches_any, require_match

PcrRules: TypeAlias = Mapping[str, bytes | Collection[bytes]] | Collection[PcrRule]
"""Accepted values by bank and index: `{"sha256:7": value}`."""

_DIGEST: Final = 32  # bytes of SHA-256
_SHOWN: Final = 3  # accepted values that an error lists
_PIN: Final = "pin paravisor_measurement or id_key_digest"
_TEXTS: Final = GOOGLE_CLAIMS
RULE_PLATFORMS: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("pcrs", "init_data"), VTPM_PLATFORMS),
    **dict.fromkeys(("trusted_aks", *_TEXTS), VTPM_PLATFORMS - {NITRO_TPM}),
    "require_joins": HCL_PLATFORMS | {GCP_TDX, GCP_SNP},
    **dict.fromkeys(("paravisor_measurement", *PARAVISOR_CLAIMS), HCL_PLATFORMS),
    "id_key_digest": SNP_PLATFORMS,
}
"""Platforms that have the value of a rule."""


@dataclass(frozen=True, kw_only=True)
class VtpmRules:
    """Rules of an `AppraisalPolicy` about guests with a TPM, and about keys of cloud providers."""

    pcrs: PcrRules = ()
    """Accepted values of quoted PCRs by bank and index, such as `sha256:7`.

    A PCR that is not quoted is rejected. The banks are sha256, sha384 and sha512.
    """

    trusted_aks: Values = None
    """Accepted attestation keys: the SHA-256 of their SubjectPublicKeyInfo, or that itself (DER).

    A TPM whose key neither a certificate nor a hardware report certifies is accepted only so.
    """

    require_joins: Collection[Join] = frozenset()
    """Directions in which hardware evidence and TPM must be joined."""

    paravisor_measurement: Values = None
    """Accepted paravisors of Azure, 48 bytes: MEASUREMENT of SEV-SNP, MRTD of TDX."""

    id_key_digest: Values = None
    """Accepted signers of the ID block of an SEV-SNP guest, 48 bytes, not zero.

    At Azure, this is the signer of the paravisor.
    """

    secure_boot: bool | None = None
    """Required state of Secure Boot, as the paravisor of Azure reports it."""

    console_enabled: bool | None = None
    """Required state of the VM's console, as the paravisor of Azure reports it."""

    tpm_persisted: bool | None = None
    """Whether the TPM's state must persist (True) or not (False), as Azure's paravisor reports."""

    init_data: Values = None
    """Accepted digests of 32 bytes, the only extension of PCR 8 in the SHA-256 bank."""

    gce_project: Collection[str] | None = None
    """Accepted Google projects (id), named by the certificate of the attestation key."""

    gce_zone: Collection[str] | None = None
    """Accepted Google zones."""

    gce_instance: Collection[str] | None = None
    """Accepted Google instances: name or numeric id."""

    vlek_providers: Collection[str] = frozenset()
    """Cloud providers (CSP_ID of the VLEK) whose keys may sign an SEV-SNP report.

    A report that is signed with another provider's key is rejected; by default, one that is signed
    with any provider's key.
    """

    def _check_vtpm_rules(self) -> None:
        """Normalise the rules; UsageError if one is not valid."""
        object.__setattr__(self, "pcrs", normalize_pcrs(self.pcrs))
        object.__setattr__(self, "trusted_aks", _key_digests(self.trusted_aks))
        if any(not any(value) for value in self.id_key_digest or ()):
            message = "id_key_digest: must not be zero, which means that a guest has no ID block"
            raise UsageError(message, reason="wrong_value")
        joins = normalize_members("require_joins", self.require_joins, str)
        if unknown := joins - {*get_args(Join)}:
            raise UsageError(
                f"require_joins: unknown: {min(unknown)!r}, must be one of "
                f"{', '.join(get_args(Join))}",
                reason="unknown_name",
            )
        object.__setattr__(self, "require_joins", joins)
        for name in (*_TEXTS, "vlek_providers"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _texts(name, value, empty=name == "vlek_providers"))

    @unlocked_property
    def _vtpm_only(self) -> dict[str, frozenset[str]]:
        """Rules that are set, each with its platforms; evidence of other platforms is rejected."""
        return {
            one.name: RULE_PLATFORMS[one.name]
            for one in fields(VtpmRules)
            if one.name != "vlek_providers" and getattr(self, one.name) != one.default
        }

    @property
    def _identifies_paravisor(self) -> bool:
        return self.paravisor_measurement is not None or self.id_key_digest is not None

    def identify(self, claims: Claims) -> Claims:
        """Return claims whose `platform` depends on whether this policy identifies the paravisor.

        Evidence of `hcl-snp` and `hcl-tdx` is named `azure-snp` and `azure-tdx` if a rule
        identifies its paravisor, and only then.
        """
        name = HCL.get(claims.platform, claims.platform)
        if self._identifies_paravisor and self._has_paravisor(claims):
            name = AZURE.get(name, name)
        return claims if name == claims.platform else replace(claims, platform=name)

    def _has_paravisor(self, claims: Claims) -> bool:
        """Return whether claims meet all rules about the paravisor that are set."""
        return all(
            have is not None and matches_any(have, wanted)
            for _, wanted, _, have in self._paravisor_rules(claims)
        )

    def _paravisor_rules(
        self, claims: Claims
    ) -> Iterator[tuple[str, Collection[bytes], str, bytes | None]]:
        """Yield the paravisor rules that are set: name, accepted values, claim's name and value."""
        if self.paravisor_measurement is not None:
            yield "paravisor_measurement", self.paravisor_measurement, *launch_measurement(claims)
        if self.id_key_digest is not None:
            have = claims.get("id_key_digest")
            yield "id_key_digest", self.id_key_digest, "ID key digest", have

    def _lists(self, key: bytes) -> bool:
        return bool(key) and matches_any(sha256(key), self.trusted_aks or ())

    def _appraise_vtpm(self, claims: Claims) -> Iterator[VerificationStep]:
        """Yield the verification steps; an error names the first rule that is not met.

        Raises:
            PolicyError: If a rule is not met.
            SignatureError: If nothing certifies the TPM's key, and `trusted_aks` does not list it.
        """
        for name, platforms in self._vtpm_only.items():
            if claims.platform not in platforms:
                raise _missing(name, claims.platform)
        if is_snp(claims):
            yield from self._appraise_vlek(claims)
        yield from self._appraise_paravisor(claims)
        if claims.vtpm is not None:
            yield from self._appraise_key(claims.vtpm)
            yield from self._appraise_values(claims, claims.vtpm)
        elif rest := sorted(self._vtpm_only.keys() - {"id_key_digest"}):
            raise _missing(rest[0], claims.platform)

    def _appraise_vlek(self, claims: Claims) -> Iterator[VerificationStep]:
        if not is_signed_by_vlek(claims):
            return
        provider = vlek_provider(claims)
        if provider not in self.vlek_providers:
            raise PolicyError(
                f"VLEK: the report is signed with the key of the cloud provider {shown(provider)}, "
                "which is not accepted; name it in vlek_providers, or request a report signed by "
                "the chip's VCEK",
                reason="vlek_providers",
            )
        yield passed("vlek_providers", f"the VLEK of {shown(provider)} is accepted")

    def _require_paravisor(self, claims: Claims) -> None:
        """Raise PolicyError if a rule about the paravisor is set, and not met."""
        for _ in self._match_paravisor(claims):
            pass

    def _match_paravisor(self, claims: Claims) -> Iterator[VerificationStep]:
        remedy = "run the VM under that paravisor, or accept this one in "
        for name, wanted, what, have in self._paravisor_rules(claims):
            if have is None:
                raise _missing(name, claims.platform)
            require_match(_reason(name), f"{name} ({what})", have, wanted, remedy + name)
            yield passed(_check(name), f"{what} {have.hex()} is accepted")

    def _appraise_paravisor(self, claims: Claims) -> Iterator[VerificationStep]:
        yield from self._match_paravisor(claims)
        if claims.platform in HCL:
            yield passed("paravisor", f"the paravisor is identified, so this is {claims.platform}")
        elif claims.platform in AZURE:
            yield caution(
                "paravisor",
                "the paravisor is not identified, and any guest of this kind could have made this "
                f"evidence, with a TPM of its own; {_PIN}",
            )
        yield from self._appraise_details(claims)

    def _appraise_details(self, claims: Claims) -> Iterator[VerificationStep]:
        details = {} if claims.vtpm is None else dict(claims.vtpm.details)
        for name in PARAVISOR_CLAIMS:
            if (wanted := getattr(self, name)) is None:
                continue
            have = details.get(name)
            if have != str(wanted).lower():
                raise PolicyError(
                    f"{name}: {'not reported' if have is None else shown(have)}, must be "
                    f"{str(wanted).lower()}; configure the VM so, or drop {name} from the policy",
                    reason=_reason(name),
                )
            yield passed(_check(name), f"{name} is {have}")
        for name in _TEXTS:
            if (accepted := getattr(self, name)) is None:
                continue
            named = [details.get(name), details.get("gce_instance_id")]
            found = [one for one in named[: 1 + (name == "gce_instance")] if one is not None]
            if accepted.isdisjoint(found):
                have = shown(found[0]) if found else "not in the certificate of the TPM's key"
                more = "" if len(accepted) <= _SHOWN else f" or {len(accepted) - _SHOWN} more"
                raise PolicyError(
                    f"{name}: {have}, must be {' or '.join(sorted(accepted)[:_SHOWN])}{more}; run "
                    f"the VM there, or change {name} in the policy",
                    reason=_reason(name),
                )
            yield passed(_check(name), f"{name} {shown(found[0])} is accepted")

    def _appraise_key(self, vtpm: VtpmFacts) -> Iterator[VerificationStep]:
        if self.trusted_aks is not None:
            have = sha256(vtpm.attestation_key)
            if not self._lists(vtpm.attestation_key):
                raise PolicyError(
                    f"attestation key: SHA-256 {have.hex()}, must be "
                    f"{format_values(self.trusted_aks)}; use that TPM, or accept this key in "
                    "trusted_aks",
                    reason="trusted_aks",
                )
            yield passed("trusted_aks", f"the attestation key {have.hex()} is accepted")
        elif vtpm.key_trust == "listed":  # by another policy
            raise SignatureError(
                f"attestation key: SHA-256 {sha256(vtpm.attestation_key).hex()}, and nothing "
                "certifies it; list it in trusted_aks of the policy, or pass the root of its "
                "certificate in ak_roots",
                reason="ak_unknown",
            )
        if self.require_joins:
            for join in sorted(self.require_joins):
                if join not in vtpm.joins:
                    raise PolicyError(
                        f"join {join}: required, but missing in the evidence; request evidence "
                        "over nonce and TPM key, or drop it from require_joins",
                        reason="require_joins",
                    )
            names = " and ".join(sorted(self.require_joins))
            yield passed("require_joins", f"hardware evidence and TPM are joined: {names}")

    def _appraise_values(self, claims: Claims, vtpm: VtpmFacts) -> Iterator[VerificationStep]:
        rules: tuple[PcrRule, ...] = tuple(self.pcrs)  # type: ignore[arg-type] # normalised
        yield from appraise_pcrs(rules, vtpm, firmware_log=claims.platform == GO_TPM_TOOLS)
        if self.init_data is None:
            return
        have = vtpm.pcr("sha256", 8)
        wanted = {sha256(bytes(_DIGEST) + digest) for digest in self.init_data}
        if have is None:
            message = "init_data: PCR 8 of the bank sha256 is not quoted; quote it"
            raise PolicyError(message, reason="init_data")
        if not matches_any(have, wanted):
            raise PolicyError(
                f"init_data: PCR 8 is {have.hex()}, must be {format_values(wanted)}, the extension "
                "of an accepted digest alone; start the VM with that init-data, or add its digest "
                "to init_data",
                reason="init_data",
            )
        yield passed("init_data", "PCR 8 is the extension of an accepted digest")


def _key_digests(given: object) -> frozenset[bytes] | None:
    """Return the keys of the rule `trusted_aks` as SHA-256 digests; None if the rule is not set.

    Args:
        given: A collection of digests (32 bytes) and keys (SubjectPublicKeyInfo in DER); or None.

    Raises:
        UsageError: If a value is neither, or there are none.
    """
    if given is None:
        return None
    found = normalize_members("trusted_aks", given, bytes)
    if any(type(one) is not bytes for one in found):  # a subclass may override ==
        raise UsageError("trusted_aks: values must be bytes, no subclass", reason="wrong_type")
    require_members("trusted_aks", found)
    for one in found:
        if len(one) != _DIGEST and not (len(one) > _DIGEST and one[:1] == b"\x30"):
            raise UsageError(
                "trusted_aks: each value must be an attestation key (SubjectPublicKeyInfo in DER) "
                f"or its SHA-256 (32 bytes), not {len(one)} bytes: {shown(one.hex())}",
                reason="wrong_size",
            )
    return frozenset(one if len(one) == _DIGEST else sha256(one) for one in found)


def _texts(name: str, given: object, *, empty: bool) -> frozenset[str]:
    """Return the accepted texts of a rule as a frozenset.

    Args:
        name: Name of the rule in errors.
        given: A collection of texts.
        empty: Whether the collection may be empty.

    Raises:
        UsageError: If a text is empty, or there are none although `empty` is false.
    """
    found = normalize_members(name, given, str)
    if not empty:
        require_members(name, found)
    return frozenset(check_text(name, one) for one in found)


def _reason(rule: str) -> PolicyReason:
    """Return the reason of a rule's error, which has the name of the rule."""
    return cast("PolicyReason", rule)


def _check(rule: str) -> StepCheck:
    """Return the check of a rule's step, which has the name of the rule."""
    return cast("StepCheck", rule)


def _missing(rule: str, platform: str) -> PolicyError:
    return PolicyError(
        f"{rule}: {platform} evidence has no such value; use a policy for {platform}, without "
        f"{rule}",
        reason=_reason(rule),
    )
