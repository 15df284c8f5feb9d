"""Attempts on the collateral of a quote: parts of others, of other times and of other roots."""

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, Final

from attestkit._crypto.pem import encode_pem
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    PkiConfig,
    QeIdentityConfig,
    TcbInfoConfig,
)
from attestkit.collateral import Collateral
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    PolicyError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.attacks.attempts import Kind, Surfaces
from tests.raising import raises
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, PKI

attacks = Surfaces("collateral")

RAW: Final = intel.evidence().to_bytes()
GOOD: Final = intel.collateral()
ATTACKER: Final = SimulatedPki(bytes(32))
FOREIGN: Final = ATTACKER.collateral(NOW.timestamp())
SECOND: Final = timedelta(seconds=1)


def verify(collateral: Collateral, now: datetime = NOW, **options: Any) -> AttestationResult:
    """Verify the quote of a TD with this collateral."""
    found = intel.verifier(collateral=collateral, clock=lambda: now, **options)
    return found.verify(RAW, report_data=NONCE)


@cache
def accepted() -> AttestationResult:
    """Verify the quote with its own collateral; it is accepted."""
    return verify(GOOD)


def made(**config: Any) -> Collateral:
    """Return collateral that Intel's simulated PKI signed with another content."""
    return PKI.collateral(NOW.timestamp(), CollateralConfig(**config))


def add(
    kind: Kind,
    name: str,
    change: Callable[[], Collateral],
    error: type[AttestKitError],
    *reasons: str,
    now: datetime = NOW,
) -> None:
    """Add an attempt with changed collateral."""

    def run() -> object:
        accepted()
        return verify(change(), now)

    attacks.add(kind, name, run, error, *reasons)


# -- parts of others ---------------------------------------------------------------------------

PARTS: Final[dict[str, tuple[str, ...]]] = {
    "TCB info": ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
    "QE identity": ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
    "PCK CRL": ("pck_crl", "pck_crl_issuer_chain"),
    "root CRL": ("root_ca_crl",),
}


def mixed(names: tuple[str, ...], other: Collateral) -> Collateral:
    """Return the genuine collateral with fields of another one."""
    return replace(GOOD, **{name: getattr(other, name) for name in names})


for part, names in PARTS.items():
    add(
        "recombine",
        f"{part} of a PKI of the attacker with its chain",
        partial(mixed, names, FOREIGN),
        SignatureError,
        "untrusted_root",
        "crl_bad_signature",
    )
    if len(names) > 1:
        add(
            "recombine",
            f"{part} of a PKI of the attacker under the genuine chain",
            partial(mixed, names[:-1], FOREIGN),
            SignatureError,
            "tcb_info_bad_signature",
            "qe_identity_bad_signature",
            "crl_bad_signature",
        )

SWAPS: Final = {
    "TCB info signed as QE identity": {"tcb_info_signature": GOOD.qe_identity_signature},
    "QE identity in place of TCB info": {
        "tcb_info": GOOD.qe_identity,
        "tcb_info_signature": GOOD.qe_identity_signature,
    },
    "TCB info in place of QE identity": {
        "qe_identity": GOOD.tcb_info,
        "qe_identity_signature": GOOD.tcb_info_signature,
    },
    "root CRL in place of the PCK CRL": {"pck_crl": GOOD.root_ca_crl},
    "PCK CRL in place of the root CRL": {"root_ca_crl": GOOD.pck_crl},
    "chain of the PCK CRL as signer of TCB info": {
        "tcb_info_issuer_chain": GOOD.pck_crl_issuer_chain
    },
    "chain of TCB info as issuer of the PCK CRL": {
        "pck_crl_issuer_chain": GOOD.tcb_info_issuer_chain
    },
}
for title, changes in SWAPS.items():
    change: Any = changes
    add(
        "confuse",
        title,
        partial(replace, GOOD, **change),
        VerificationError,
        "tcb_info_bad_signature",
        "tcb_info_wrong_type",
        "qe_identity_wrong_type",
        "crl_missing",
        "unexpected_subject",
    )

CHAIN: Final = GOOD.tcb_info_issuer_chain
EXTRA: Final = encode_pem("CERTIFICATE", ATTACKER.root_der)
CHAINS: Final = {
    "with a further root at its end": CHAIN.rstrip() + "\n" + EXTRA,
    "with a further root before it": EXTRA + CHAIN,
    "twice": CHAIN + CHAIN,
    "with a comment between certificates": CHAIN.replace(
        "-----END CERTIFICATE-----\n", "-----END CERTIFICATE-----\ncomment\n", 1
    ),
    "of the root alone": encode_pem("CERTIFICATE", PKI.root_der),
    "whose signer is a PCK CA": encode_pem("CERTIFICATE", PKI.pck_ca_der)
    + encode_pem("CERTIFICATE", PKI.root_der),
}
for title, chain in CHAINS.items():
    add(
        "confuse",
        f"issuer chain of TCB info {title}",
        partial(replace, GOOD, tcb_info_issuer_chain=chain),
        AttestKitError,
        "chain_length",
        "cert_malformed",
        "untrusted_root",
        "unexpected_subject",
    )

# -- content that Intel signed for others ------------------------------------------------------

CONTENTS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "TCB info of another FMSPC": (
        {"tcb_info": TcbInfoConfig(fmspc=b"\1" * 6)},
        "tcb_info_mismatch",
    ),
    "TCB info of another PCEID": ({"tcb_info": TcbInfoConfig(pceid=b"\1\0")}, "tcb_info_mismatch"),
    "TCB info of SGX": (
        {"tcb_info": TcbInfoConfig(id="SGX", tdx=False)},
        "tcb_info_wrong_type",
    ),
    "TCB info of a version before TDX": (
        {"tcb_info": TcbInfoConfig(version=2)},
        "tcb_info_wrong_type",
    ),
    "QE identity of SGX": ({"qe_identity": QeIdentityConfig(id="QE")}, "qe_identity_wrong_type"),
    "QE identity of the QVE": (
        {"qe_identity": QeIdentityConfig(id="QVE")},
        "qe_identity_wrong_type",
    ),
    "TCB info that a PCK key signed": (
        {"tcb_info": TcbInfoConfig(by_platform=True)},
        "chain_length",
    ),
    "CRL of the root in place of the PCK CA's": ({"pck_crl_is_roots": True}, "crl_missing"),
    "status raised after signing": (
        {
            "tcb_info": TcbInfoConfig(status="OutOfDate"),
            "altered": (("tcb_info", "OutOfDate", "UpToDate"),),
        },
        "tcb_info_bad_signature",
    ),
    "advisory removed after signing": (
        {
            "tcb_info": TcbInfoConfig(advisories=("INTEL-SA-00001",)),
            "altered": (("tcb_info", '"INTEL-SA-00001"', ""),),
        },
        "tcb_info_bad_signature",
    ),
}
for title, (config, reason) in CONTENTS.items():
    add(
        "recombine" if "after" not in title else "forge",
        title,
        partial(made, **config),
        AttestKitError,
        reason,
    )


@attacks.attempt("confuse", SignatureError, "tcb_info_bad_signature")
def tcb_info_with_a_member_twice_behind_the_signature() -> object:
    """A second list of levels, for readers that keep the last one."""
    accepted()
    return verify(replace(GOOD, tcb_info=GOOD.tcb_info[:-1] + ',"tcbLevels":[]}'))


# -- time --------------------------------------------------------------------------------------

add(
    "replay",
    "collateral at its next update",
    lambda: GOOD,
    CollateralExpiredError,
    "crl_expired",
    now=GOOD.valid_until,
)
add(
    "replay",
    "collateral of a year ago",
    lambda: PKI.collateral(NOW.timestamp() - 365 * 86400),
    CollateralExpiredError,
    "crl_expired",
)
add(
    "replay",
    "collateral of tomorrow",
    lambda: made(age=-timedelta(days=2)),
    CollateralExpiredError,
    "crl_expired",
)


def expired_part(part: str) -> Collateral:
    """Return collateral of which one part has expired."""
    return mixed(PARTS[part], made(age=timedelta(days=60)))


for part in PARTS:
    add(
        "replay",
        f"expired {part} beside current ones",
        partial(expired_part, part),
        CollateralExpiredError,
        "tcb_info_expired",
        "qe_identity_expired",
        "crl_expired",
    )


@attacks.attempt("replay", PolicyError, "evaluation_data_number")
def tcb_info_from_before_a_recovery() -> object:
    """An older TCB info is still valid; the policy names the recovery that it must have."""
    accepted()
    policy = AppraisalPolicy.default().replace(minimum_evaluation_data_number=18)
    assert verify(GOOD, policy=policy).tcb
    old = made(tcb_info=TcbInfoConfig(evaluation_number=17))
    return verify(old, policy=policy)


@attacks.attempt("replay", PolicyError, "evaluation_data_number")
def qe_identity_from_before_a_recovery() -> object:
    """The number of each of the two bodies counts."""
    accepted()
    policy = AppraisalPolicy.default().replace(minimum_evaluation_data_number=18)
    old = made(qe_identity=QeIdentityConfig(evaluation_number=17))
    return verify(old, policy=policy)


@attacks.attempt("replay", UsageError, "wrong_value")
def time_of_the_verification_without_a_zone() -> object:
    """A naive time could be of any zone, and so hide an expiry."""
    accepted()
    verifier = intel.verifier()
    return verifier.verify(RAW, report_data=NONCE, now=NOW.replace(tzinfo=None))


# -- size --------------------------------------------------------------------------------------


@attacks.attempt("exhaust")
def field_of_over_a_mebibyte() -> None:
    """No field is parsed or hashed beyond its limit."""
    for name in [one.name for one in fields(Collateral) if not one.name.endswith("signature")]:
        value: Any = getattr(GOOD, name) or "x"
        padding: Any = b" " if isinstance(value, bytes) else " "
        with raises(CollateralError, "too_large"):
            replace(GOOD, **{name: value + padding * (1 << 20)})


@attacks.attempt("exhaust", CollateralError, "malformed")
def tcb_info_nested_without_end() -> object:
    """A recursive reader would exhaust the stack."""
    text = '{"issueDate":' + "[" * 200_000 + "]" * 200_000 + "}"
    return replace(GOOD, tcb_info=text).valid_until


@attacks.attempt("exhaust", CollateralError, "malformed")
def tcb_info_with_a_number_of_a_million_digits() -> object:
    """Python's conversion of such a number takes seconds, and is limited."""
    text = '{"tcbEvaluationDataNumber":' + "9" * 1_000_000 + "}"
    return replace(GOOD, tcb_info=text).valid_until


# -- trust anchors -----------------------------------------------------------------------------


@attacks.attempt("forge", SignatureError, "untrusted_root")
def quote_and_collateral_of_a_pki_of_the_attacker() -> object:
    """Everything fits together, under another root of the same name."""
    accepted()
    with_own = Simulator(seed=bytes(32))
    try:
        quote = with_own.get_quote(NONCE.ljust(64, b"\0"))
    finally:
        with_own.close()
    return intel.verifier(collateral=FOREIGN).verify(quote, report_data=NONCE)


@attacks.attempt("forge", SignatureError, "untrusted_root")
def simulated_quote_for_a_verifier_with_intels_root() -> object:
    """The verifier was not asked to trust a simulator."""
    accepted()
    verifier = Verifier(collateral=GOOD, clock=lambda: NOW)
    return verifier.verify(RAW, report_data=NONCE)


@attacks.attempt("forge", PolicyError, "simulated", "refuse_simulated")
def simulated_quote_under_a_policy_that_refuses_it() -> object:
    """The trust anchor of a test, left in production, is refused by the policy."""
    accepted()
    policy = AppraisalPolicy.default().replace(refuse_simulated=True)
    return verify(GOOD, policy=policy)


@attacks.attempt("recombine", SignatureError, "untrusted_root")
def warm_verifier_of_another_root() -> object:
    """A verifier with another root does not reuse results of the first verifier."""
    accepted()
    other = intel.verifier(trust_anchor=ATTACKER.root_der, collateral=GOOD)
    return other.verify(RAW, report_data=NONCE)


@attacks.attempt("recombine", SignatureError, "untrusted_root")
def collateral_of_a_root_of_the_same_key_and_other_validity() -> object:
    """The root was issued again: chains of quote and collateral must have the same one."""
    accepted()
    config = PkiConfig(not_after=NOW + timedelta(days=3650))
    again = SimulatedPki(bytes(range(32)), config=config)
    return verify(again.collateral(NOW.timestamp()))
