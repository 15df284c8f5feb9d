"""Attempts on Google's VMs: hardware and TPM of two of them, logs, certificates and events."""

from functools import cache, partial
from typing import Any, Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    PcrValue,
    RuntimeEvent,
    TpmEventDigest,
    VtpmQuote,
)
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    VerificationError,
)
from attestkit.event_log.runtime_events import runtime_preimage
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.attacks.attempts import Kind, Surfaces
from tests.verifier.platforms.vtpm.made_tpm import sign_quote

attacks = Surfaces("vtpm")

NONCE: Final = b"a nonce of the relying party"
EARLIER: Final = b"the nonce of an earlier session"
SEED: Final = bytes(range(32))
OTHER: Final = P256Key.from_scalar(b"\x44" * 32)
KINDS: Final = ("tdx", "snp")
JOINS: Final = ("hardware_to_ak", "ak_to_hardware")


@cache
def machine(kind: str) -> tuple[Any, Verifier, Attestation, Attestation]:
    """Return a VM, a verifier of it, and its evidence of the nonce and of an earlier one."""
    simulator: Any = Simulator(seed=SEED, platform=f"gcp-{kind}")
    attester = Attester(simulator)
    policy = AppraisalPolicy.default().replace(
        platforms=("dstack-gcp-tdx", "gcp-snp"), require_joins=JOINS
    )
    verifier = attester.verifier(policy=policy)
    evidence, old = attester.attest(nonce=NONCE), attester.attest(nonce=EARLIER)
    result = verifier.verify(evidence, nonce=NONCE)
    assert result.claims.vtpm is not None
    assert result.claims.vtpm.joins == JOINS
    return simulator, verifier, evidence, old


def platform_of(kind: str, *, old: bool = False) -> Any:
    """Return the platform's part of the evidence."""
    _, _, current, earlier_one = machine(kind)
    return (earlier_one if old else current).evidence.platform


def quote_of(platform: Any) -> Any:
    """Return the TPM's quote in evidence of either kind."""
    return platform.vtpm_quote if hasattr(platform, "vtpm_quote") else platform.tpm_quote


def with_quote(platform: Any, quote: Any) -> Any:
    """Return evidence with another quote."""
    name = "vtpm_quote" if hasattr(platform, "vtpm_quote") else "tpm_quote"
    return platform._replace(**{name: quote})


def hardware(platform: Any) -> bytes:
    """Return the hardware's evidence, over which the TPM's quote is."""
    found: bytes = platform.report if hasattr(platform, "report") else platform.quote
    return found


def check(kind: str, platform: Any, **stack: Any) -> AttestationResult:
    """Verify evidence with this platform's part, and other parts of the stack."""
    _, verifier, good, _ = machine(kind)
    evidence = good.evidence._replace(
        platform=platform, stack=good.evidence.stack._replace(**stack)
    )
    return verifier.verify(Attestation(evidence), nonce=NONCE)


def altered(kind: str, **parts: Any) -> Any:
    """Return the platform's part with other parts of the quote."""
    found = platform_of(kind)
    return with_quote(found, quote_of(found)._replace(**parts))


def other_tpm(kind: str, signed: bytes | None = None, **pcrs: bytes) -> Any:
    """Return the victim's hardware evidence with the quote of a TPM that Google certified, too."""
    simulator, _, _, _ = machine(kind)
    found = platform_of(kind)
    values = tuple(
        one._replace(value=pcrs.get(f"pcr{one.number}", one.value))
        for one in quote_of(found).pcr_values
    )
    extra = sha256(hardware(found) if signed is None else signed)
    made = sign_quote(extra, values, OTHER)
    certificate = simulator._certify(OTHER.spki_der)
    parts: dict[str, Any] = {
        "message": made.message,
        "signature": made.signature,
        "pcr_values": made.pcr_values,
    }
    if kind == "tdx":
        return altered(kind, **parts, ak_cert=certificate)
    return altered(kind, **parts, ak_public=b"", ak_certificates=(certificate,))


def both(kind: Kind, name: str, make: Any, error: type[AttestKitError], *reasons: str) -> None:
    """Add an attempt for each kind of hardware."""

    def run(hardware_kind: str) -> object:
        return check(hardware_kind, make(hardware_kind))

    for one in KINDS:
        attacks.add(kind, f"gcp-{one}: {name}", partial(run, one), error, *reasons)


both(
    "relay",
    "hardware evidence of the victim with the TPM of the tenant",
    other_tpm,
    PolicyError,
    "require_joins",
    "report_data",
)
both(
    "relay",
    "quote of the tenant's TPM over hardware evidence of his own",
    lambda kind: other_tpm(kind, b"evidence of the tenant's VM"),
    VerificationError,
    "tpm_join",
)
both(
    "replay",
    "TPM quote of an earlier nonce",
    lambda kind: with_quote(platform_of(kind), quote_of(platform_of(kind, old=True))),
    VerificationError,
    "tpm_join",
)
both(
    "recombine",
    "signature of an earlier quote",
    lambda kind: altered(kind, signature=quote_of(platform_of(kind, old=True)).signature),
    SignatureError,
    "tpm_quote_bad_signature",
)
both(
    "forge",
    "PCR values of a better boot",
    lambda kind: altered(
        kind,
        pcr_values=tuple(
            PcrValue(one.number, one.algorithm, bytes(32)) if one.number == 2 else one
            for one in quote_of(platform_of(kind)).pcr_values
        ),
    ),
    VerificationError,
    "pcr_digest",
)
both(
    "confuse",
    "PCR value twice",
    lambda kind: altered(
        kind,
        pcr_values=(
            *quote_of(platform_of(kind)).pcr_values,
            quote_of(platform_of(kind)).pcr_values[0],
        ),
    ),
    VerificationError,
    "pcr_selection",
)


def foreign_certificate(kind: str) -> Any:
    """Return evidence whose key a machine of another Google certifies."""
    other: Any = Simulator(seed=bytes(32), platform=f"gcp-{kind}")
    try:
        spki = machine(kind)[0].read_attestation_key()
        der = other._certify(spki)
    finally:
        other.close()
    if kind == "tdx":
        return altered(kind, ak_cert=der)
    return altered(kind, ak_certificates=(der,))


both(
    "forge",
    "certificate of the key under another root",
    foreign_certificate,
    CollateralError,
    "missing",
)


def earlier(kind: str) -> object:
    """Verify all of the evidence of an earlier nonce, with its own report data."""
    old = machine(kind)[3].evidence
    return check(kind, old.platform, report_data=old.stack.report_data)


for one in KINDS:
    title = f"gcp-{one}: whole evidence of an earlier nonce"
    attacks.add("replay", title, partial(earlier, one), PolicyError, "report_data")


@attacks.attempt("confuse", VerificationError, "pcr_selection")
def pcr_values_of_a_td_in_another_order() -> object:
    """Upstream reads the values by their place."""
    found = quote_of(platform_of("tdx")).pcr_values
    return check("tdx", altered("tdx", pcr_values=found[::-1]))


def key_of_other(kind: str) -> Any:
    """Return evidence with a genuine certificate of another key."""
    der = machine(kind)[0]._certify(OTHER.spki_der)
    return altered(kind, **({"ak_cert": der} if kind == "tdx" else {"ak_certificates": (der,)}))


both(
    "recombine",
    "genuine certificate of another TPM",
    key_of_other,
    SignatureError,
    "tpm_quote_bad_signature",
    "ak_mismatch",
)


# -- TDX: log and events -----------------------------------------------------------------------


def log_of() -> tuple[TpmEventDigest, ...]:
    """Return the log beside the quote of the TD."""
    found: tuple[TpmEventDigest, ...] = quote_of(platform_of("tdx")).event_log
    return found


@attacks.attempt("forge", ReplayError, "pcr_mismatch")
def log_without_the_kernel_image() -> object:
    """The records of PCR 2 say what the loader started."""
    kept = tuple(one for one in log_of() if one.pcr_index != 2)
    return check("tdx", altered("tdx", event_log=kept))


@attacks.attempt("forge", ReplayError, "pcr_mismatch")
def log_with_the_kernel_image_of_another_release() -> object:
    """The quoted PCR 2 is of another image."""
    changed = tuple(
        one._replace(digest=sha256(b"good image")) if one.pcr_index == 2 else one
        for one in log_of()
    )
    return check("tdx", altered("tdx", event_log=changed))


@attacks.attempt("confuse", ReplayError, "pcr_mismatch")
def runtime_events_as_records_of_the_firmware() -> object:
    """Events moved to the log would be extended without their names."""
    events = machine("tdx")[2].evidence.stack.runtime_events
    records = tuple(TpmEventDigest(14, sha256(one.payload)) for one in events)
    found = altered("tdx", event_log=(*log_of(), *records))
    return check("tdx", found, runtime_events=())


@attacks.attempt("forge", ReplayError, "pcr_mismatch")
def event_of_an_app_that_did_not_start() -> object:
    """The name of an event is covered by its digest."""
    events = tuple(
        RuntimeEvent(one.event, b"\x01" * 20) if one.event == "app-id" else one
        for one in machine("tdx")[2].evidence.stack.runtime_events
    )
    return check("tdx", platform_of("tdx"), runtime_events=events)


@attacks.attempt("exhaust", FormatError, "too_many")
def log_of_a_hundred_thousand_records() -> object:
    """Each is hashed."""
    return check("tdx", altered("tdx", event_log=log_of() * 6000))


@attacks.attempt("confuse", FormatError, "wrong_value")
def quote_that_says_it_is_of_another_cloud() -> object:
    """The rules of the clouds differ."""
    return check("tdx", altered("tdx", platform="azure"))


@attacks.attempt("confuse", FormatError, "truncated")
def evidence_of_google_in_the_form_of_azure() -> object:
    """The rules of Azure do not ask for the TPM's quote over the report."""
    platform = platform_of("snp")
    found = AzureSnp(platform.report, platform.vtpm_quote, platform.cert_chain)
    return check("snp", found)


@attacks.attempt("forge", FormatError, "missing")
def snp_guest_without_a_certificate_of_its_tpm() -> object:
    """The key would be the sender's."""
    return check("snp", altered("snp", ak_certificates=()))


@attacks.attempt("exhaust", SignatureError, "chain_length")
def snp_guest_with_a_hundred_certificates() -> object:
    """The search for a path is bounded."""
    [leaf] = quote_of(platform_of("snp")).ak_certificates
    return check("snp", altered("snp", ak_certificates=(leaf, *[leaf] * 100)))


@attacks.attempt("relay", PolicyError, "gce_instance")
def instance_of_the_tenant_under_a_policy_for_that_of_the_victim() -> object:
    """The certificate of the key names the instance."""
    simulator, _, evidence, _ = machine("snp")
    pinned = AppraisalPolicy.default().replace(platforms=("gcp-snp",), gce_instance=["victim-vm"])
    with Attester(simulator) as attester:
        return attester.verifier(policy=pinned).verify(evidence, nonce=NONCE)


@attacks.attempt("confuse", PolicyError, "gce_zone")
def zone_that_only_looks_like_the_pinned_one() -> object:
    """The letter l of another script."""
    simulator, _, evidence, _ = machine("snp")
    pinned = AppraisalPolicy.default().replace(
        platforms=("gcp-snp",), gce_zone=["us-centra\u04cf1-a"]
    )
    with Attester(simulator) as attester:
        return attester.verifier(policy=pinned).verify(evidence, nonce=NONCE)


@attacks.attempt("replay", CollateralExpiredError, "cert_expired")
def certificates_judged_a_century_later() -> object:
    """All certificates have ended."""
    from datetime import datetime, timezone

    _, verifier, evidence, _ = machine("snp")
    return verifier.verify(evidence, nonce=NONCE, now=datetime(2126, 1, 1, tzinfo=timezone.utc))


def parts_of(quote: VtpmQuote) -> int:
    """Return the number of PCR values."""
    return len(quote.pcr_values)


@attacks.attempt("forge", VerificationError, "pcr_selection")
def snp_guest_with_a_quote_of_one_pcr() -> object:
    """The other PCRs would be unsaid."""
    found = platform_of("snp")
    assert parts_of(found.vtpm_quote) == 24
    made = sign_quote(sha256(found.report), found.vtpm_quote.pcr_values[:1], OTHER)
    der = machine("snp")[0]._certify(OTHER.spki_der)
    parts = {"message": made.message, "signature": made.signature, "pcr_values": made.pcr_values}
    return check("snp", altered("snp", **parts, ak_public=b"", ak_certificates=(der,)))


@attacks.attempt("confuse", ReplayError, "rtmr_mismatch")
def boot_events_hidden_as_records_of_the_firmware() -> object:
    """Without its configuration, an image of dstack may have records before the events in PCR 14.

    A guest that later extends events of another app could so hide its own; RTMR3 has them all.
    """
    events = machine("tdx")[2].evidence.stack.runtime_events
    first = TpmEventDigest(14, sha256(runtime_preimage(*events[0])))
    found = altered("tdx", event_log=(*log_of(), first))
    return check("tdx", found, config="{}", runtime_events=events[1:])
