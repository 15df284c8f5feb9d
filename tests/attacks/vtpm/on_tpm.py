"""Attempts on a TPM without hardware evidence: its key, certificates and signatures."""

from datetime import timedelta
from functools import partial
from typing import Final

from attestkit._crypto.ecdsa import P256_ORDER
from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.cloud_certificates import encode_name, issue_cloud_leaf
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.backends.simulator.pki.cloud_pki import (
    VALIDITY,
    issue_google_certificate,
    make_own_root,
)
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    PolicyError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.report_data import ReportData
from attestkit.tpm import TpmtSignature
from attestkit.verifier import AppraisalPolicy
from tests.attacks.attempts import Surfaces
from tests.attacks.vtpm.tpm_evidence import (
    BOUND,
    NONCE,
    NOW,
    OTHER,
    ROOT,
    altered,
    certified,
    check,
    check_certified,
    genuine,
    policy_of,
    quoted,
)
from tests.verifier.platforms.vtpm.made_tpm import (
    SPKI,
    authority,
    certificates,
    public_area,
    secrets,
)

attacks = Surfaces("vtpm")


# -- key ---------------------------------------------------------------------------------------


@attacks.attempt("relay", SignatureError, "ak_unknown")
def quote_and_key_of_a_tpm_of_the_tenant() -> object:
    """Another TPM with the same PCRs."""
    return check(altered(**quoted(sha256(BOUND), key=OTHER), ak_public=public_area(key=OTHER)))


@attacks.attempt("recombine", SignatureError, "tpm_quote_bad_signature")
def quote_of_another_tpm_with_the_listed_key() -> object:
    """The listed key is public."""
    genuine()
    return check(altered(**quoted(sha256(BOUND), key=OTHER)))


@attacks.attempt("recombine", SignatureError, "ak_mismatch")
def listed_key_in_the_certificate_and_own_key_in_the_public_area() -> object:
    """One of the two is listed, the other one signs."""
    parts = quoted(sha256(BOUND), key=OTHER)
    public = public_area(key=OTHER)
    return check(altered(**parts, ak_public=public, ak_certificates=certificates()))


@attacks.attempt("forge", SignatureError, "ak_attributes")
def key_that_signs_any_data() -> object:
    """A key without the attribute `restricted` signs a quote that the guest wrote."""
    return check(altered(ak_public=public_area(0x00040072)))


@attacks.attempt("forge", SignatureError, "ak_attributes")
def key_that_was_imported() -> object:
    """Without `fixedTPM` the private key may be known outside of the TPM."""
    return check(altered(ak_public=public_area(0x00050070)))


@attacks.attempt("forge", SignatureError, "ak_attributes")
def key_that_also_decrypts() -> object:
    """A storage key is rejected as attestation key."""
    return check(altered(ak_public=public_area(0x00070072)))


@attacks.attempt("confuse", FormatError, "trailing_data")
def public_area_with_a_second_key_behind_it() -> object:
    """The first is checked, the last is listed."""
    return check(altered(ak_public=public_area(key=OTHER) + public_area()))


@attacks.attempt("confuse", SignatureError, "ak_unknown")
def key_listed_by_the_hash_of_its_public_area() -> object:
    """The policy lists SHA-256 of the SubjectPublicKeyInfo: no other hash stands for it."""
    return check(genuine(), policy_of(trusted_aks=[sha256(public_area())]))


@attacks.attempt("confuse", AttestKitError, "platform")
def tpm_alone_under_a_policy_for_tees() -> object:
    """The default policy accepts TEEs, and no TPM wherever it is."""
    genuine()
    return check(genuine(), AppraisalPolicy.default().replace(trusted_aks=[SPKI]))


@attacks.attempt("confuse", UsageError, "conflict")
def policy_for_a_tpm_alone_where_a_join_is_required() -> object:
    """No hardware evidence is there to be joined, so such a policy is not made."""
    genuine()
    return check(genuine(), policy_of(require_joins=["hardware_to_ak"]))


# -- certificates ------------------------------------------------------------------------------


def own_chain() -> tuple[bytes, ...]:
    """Return a certificate of the key under a root of the attacker, with the root."""

    def derive(label: str, size: int) -> bytes:
        return secrets(f"attacker {label}", size)

    top = make_own_root(derive)
    return issue_google_certificate(top, SPKI, derive), top.der


def leaf(issuer: int = 1, validity: Window = VALIDITY, usages: tuple[bytes, ...] = ()) -> bytes:
    """Return a certificate of the key by the root (0) or its CA (1)."""
    found = authority()[issuer].authority
    subject = (encode_name(CN="key"), SPKI)
    return issue_cloud_leaf(subject, found, serial=77, validity=validity, usages=usages)


@attacks.attempt("forge", SignatureError, "untrusted_root")
def certificate_under_a_root_of_the_attacker() -> object:
    """The chain brings its own root, which has the name of the trusted one."""
    certified()
    return check_certified(altered(ak_certificates=own_chain()))


@attacks.attempt("forge", CollateralError, "missing")
def certificate_without_its_issuer() -> object:
    """Nothing leads from the key to the root."""
    certified()
    return check_certified(altered(ak_certificates=certificates()[:1]))


@attacks.attempt("recombine", SignatureError, "tpm_quote_bad_signature")
def certificate_of_another_key_beside_the_quote() -> object:
    """Without a public area, the key is that of the certificate."""
    certified()
    return check_certified(altered(ak_public=b"", ak_certificates=certificates(OTHER.spki_der)))


@attacks.attempt("forge", SignatureError, "cert_not_authority")
def leaf_certificate_that_issues_another_one() -> object:
    """A tenant's key, certified by the CA, signs a certificate of a key outside of TPMs."""
    certified()
    name = encode_name(CN="key")
    from attestkit._crypto.x509.simulated.certificate_encoder import Issuer

    tenant = Issuer(name, OTHER)
    own = issue_cloud_leaf((encode_name(CN="x"), SPKI), tenant, serial=5, validity=VALIDITY)
    above = issue_cloud_leaf(
        (name, OTHER.spki_der), authority()[0].authority, serial=6, validity=VALIDITY
    )
    return check_certified(altered(ak_certificates=(own, above)))


@attacks.attempt("confuse", SignatureError, "cert_constraints")
def certificate_for_tls_servers_of_the_same_ca() -> object:
    """An extended key usage of another purpose; id-kp-serverAuth."""
    certified()
    usage = bytes.fromhex("2b06010505070301")
    return check_certified(altered(ak_certificates=(leaf(usages=(usage,)), certificates()[1])))


for title, start, end in (
    ("that is not valid yet", timedelta(seconds=1), timedelta(days=9)),
    ("that expired a second ago", timedelta(days=-9), timedelta(seconds=-1)),
):

    def at_edge(start: timedelta, end: timedelta) -> object:
        """Verify a key with a certificate of this validity."""
        certified()
        edge = leaf(validity=Window(NOW + start, NOW + end))
        return check_certified(altered(ak_certificates=(edge, certificates()[1])))

    attacks.add(
        "replay",
        f"certificate {title}",
        partial(at_edge, start, end),
        CollateralExpiredError,
        "cert_expired",
    )


@attacks.attempt("exhaust", SignatureError, "chain_length")
def nine_certificates_beside_the_key() -> object:
    """The search for a path is bounded."""
    certified()
    first, issuer = certificates()
    return check_certified(altered(ak_certificates=(first, *[issuer] * 9)))


@attacks.attempt("confuse", PolicyError, "gce_project")
def certificate_of_another_root_names_an_instance_of_google() -> object:
    """A rule about Google's project is met by Google's certificates only."""
    rules = policy_of(trusted_aks=None, gce_project=["attestkit-simulator"])
    return check(certified(), rules, ak_roots=(ROOT,))


@attacks.attempt("recombine", CollateralError, "missing")
def root_of_one_verifier_does_not_pass_to_another() -> object:
    """A chain that one verifier found valid, and keeps, is unknown to one with other roots."""
    certified()
    other = make_own_root(lambda label, size: secrets(f"third {label}", size))
    return check_certified(certified(), roots=(other.der,))


# -- signatures --------------------------------------------------------------------------------


def resigned(r: bytes, s: bytes, algorithm: str = "ecdsa", hash_name: str = "sha256") -> Tpm:
    """Return the evidence with a signature of these numbers."""
    return altered(signature=TpmtSignature(algorithm, hash_name, r=r, s=s).encode())


def numbers() -> TpmtSignature:
    """Return the genuine signature."""
    return TpmtSignature.parse(genuine().vtpm_quote.signature)


ORDER: Final = P256_ORDER.to_bytes(32, "big")
ONE: Final = b"\1".rjust(32, b"\0")
for title, r, s in (
    ("zero and zero", bytes(32), bytes(32)),
    ("the order of the curve", ORDER, ORDER),
    ("one and the order", ONE, ORDER),
):

    def edge_signature(r: bytes, s: bytes) -> object:
        """Verify a signature at the edges of the curve."""
        genuine()
        return check(resigned(r, s))

    attacks.add(
        "forge",
        f"TPM signature of {title}",
        partial(edge_signature, r, s),
        SignatureError,
        "tpm_quote_bad_signature",
    )


@attacks.attempt("forge", SignatureError, "tpm_quote_algorithm")
def signature_with_sha1() -> object:
    """A collision of SHA-1 would do."""
    return check(resigned(numbers().r, numbers().s, hash_name="sha1"))


@attacks.attempt("forge", FormatError, "unsupported_algorithm")
def null_signature() -> object:
    """TPM_ALG_NULL is a signature of no bytes."""
    genuine()
    return check(altered(signature=b"\0\x10"))


# -- qualifying data ---------------------------------------------------------------------------

BINDINGS: Final[dict[str, bytes]] = {
    "the nonce itself": NONCE,
    "the SHA-256 of the nonce": sha256(NONCE),
    "half of the report data": BOUND[:32],
    "nothing": b"",
    "report data of nonce and key": sha256(ReportData.for_nonce_and_ak(NONCE, SPKI)),
    "the hash of the hash": sha256(sha256(BOUND)),
}


def over(extra: bytes) -> object:
    """Verify a quote over these qualifying data."""
    genuine()
    return check(altered(**quoted(extra)))


for title, extra in BINDINGS.items():
    attacks.add(
        "confuse",
        f"quote of a TPM over {title}",
        partial(over, extra),
        VerificationError,
        "report_data_mismatch",
        "report_data",
    )
