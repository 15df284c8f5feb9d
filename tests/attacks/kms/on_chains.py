"""Attempts on certificates of apps under a pinned KMS, and on addresses of a KMS."""

from typing import Any, Final

from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, issue_leaf
from attestkit.errors import (
    AttestKitError,
    CollateralExpiredError,
    ConfigError,
    FormatError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.kms import KmsRoot
from attestkit.kms.release.certificates import (
    LeafProfile,
    issue_rpc,
    issue_temp_ca,
    sign_app_certificate,
)
from attestkit.kms.release.certificates import issue_root as issue_kms_root
from attestkit.kms.url import parse_kms_url
from attestkit.ra_tls import OID_APP_ID, OID_CERT_USAGE
from tests.attacks.attempts import Surfaces, bound
from tests.kms.replayed_kms import WINDOW, make_roots, root_of
from tests.kms.test_tls_chain import (
    APP_ID,
    CA_PEM,
    CHAIN,
    LEAF_KEY,
    NOW,
    OTHER_KEY,
    ROOT_KEY,
    ROOT_PEM,
    VALID,
    make_app_ca,
    make_leaf,
    make_root,
    verify,
)
from tests.untyped import untyped

attacks = Surfaces("kms")
assert verify().app_id == APP_ID
KMS: Final = make_roots(1, 2)
KMS_ROOT: Final = issue_kms_root(KMS, WINDOW)
PROFILE: Final = LeafProfile(LEAF_KEY.spki_der, "app")
OTHER_APP: Final = b"\xcd" * 20
USAGE: Final = (OID_CERT_USAGE, b"app:custom")


def of_kms(*chain: str, **options: Any) -> Any:
    """Verify a chain under a KMS whose keys the attacker has in part."""
    return verify(chain, kms_roots=[root_of(KMS)], **options)


GENUINE: Final = sign_app_certificate(KMS, KMS_ROOT, APP_ID, PROFILE, now=NOW)
OTHERS: Final = sign_app_certificate(KMS, KMS_ROOT, OTHER_APP, PROFILE, now=NOW)
assert of_kms(*GENUINE)
TEMP_CA: Final = issue_temp_ca(KMS, WINDOW)
RPC: Final = issue_rpc(KMS, KMS_ROOT, "localhost", WINDOW)


def under(ca: str, key: P256Key, **changes: Any) -> str:
    """Return an app's certificate by a CA."""
    return make_leaf(ca, ca_key=key, **changes)


def own_ca(key: P256Key, **changes: Any) -> str:
    """Return a CA certificate that the attacker signs itself."""
    fields = {"subject": "Dstack App CA", "path_length": 0, **VALID, **changes}
    return certificate_pem(issue_ca(key=key, **fields))


def by_leaf() -> str:
    """Return a certificate that the key of a genuine leaf signs."""
    issuer = own_ca(LEAF_KEY, subject="app")
    return under(issuer, LEAF_KEY, public_key=OTHER_KEY)


def by_root(usage: bytes) -> str:
    """Return a certificate that the root signs itself."""
    issued = issue_leaf(
        public_key=OTHER_KEY,
        subject="x",
        extensions=[(OID_APP_ID, APP_ID), (OID_CERT_USAGE, usage)],
        ca_cert=ROOT_PEM,
        ca_key=ROOT_KEY,
        **VALID,
    )
    return certificate_pem(issued)


CHAINS: Final[dict[str, tuple[Any, type[AttestKitError], tuple[str, ...]]]] = {
    "by the temporary CA, whose key every client has": (
        bound(of_kms, under(TEMP_CA, KMS.temp_ca_key), TEMP_CA, KMS_ROOT),
        SignatureError,
        ("untrusted_root", "cert_bad_signature"),
    ),
    "by the temporary CA as the root": (
        bound(of_kms, GENUINE[0], GENUINE[1], TEMP_CA),
        SignatureError,
        ("untrusted_root",),
    ),
    "of another app of this KMS": (bound(of_kms, *OTHERS), VerificationError, ("identity",)),
    "of another app beside the right CA": (
        bound(of_kms, OTHERS[0], GENUINE[1], KMS_ROOT),
        SignatureError,
        ("untrusted_root", "cert_bad_signature"),
    ),
    "of the app below the CA of another one": (
        bound(of_kms, GENUINE[0], OTHERS[1], KMS_ROOT),
        AttestKitError,
        ("cert_bad_signature",),
    ),
    "with the server's certificate of the KMS": (
        bound(of_kms, RPC, GENUINE[1], KMS_ROOT),
        AttestKitError,
        ("cert_bad_signature",),
    ),
    "whose app CA is the server of the KMS": (
        bound(of_kms, under(RPC, KMS.rpc_key), RPC, KMS_ROOT),
        SignatureError,
        ("cert_not_authority",),
    ),
    "in the order of its roots": (
        bound(verify, CHAIN[::-1]),
        SignatureError,
        ("untrusted_root",),
    ),
    "whose leaf stands twice": (
        bound(verify, (CHAIN[0], CHAIN[0], CHAIN[2])),
        SignatureError,
        ("cert_not_authority", "untrusted_root"),
    ),
    "by the key of a genuine leaf": (
        bound(verify, (by_leaf(), CHAIN[0], ROOT_PEM)),
        SignatureError,
        ("cert_not_authority", "untrusted_root"),
    ),
    "that the root signed without an app CA": (
        bound(verify, (by_root(b"app:custom"), ROOT_PEM, ROOT_PEM)),
        AttestKitError,
        ("cert_not_authority", "cert_usage"),
    ),
    "whose root has the pinned name and another key": (
        bound(verify, (*CHAIN[:2], make_root(OTHER_KEY))),
        SignatureError,
        ("untrusted_root",),
    ),
    "whose app CA has the right name and another key": (
        bound(verify, (under(own_ca(OTHER_KEY), OTHER_KEY), own_ca(OTHER_KEY), ROOT_PEM)),
        SignatureError,
        ("untrusted_root", "cert_bad_signature"),
    ),
    "whose app CA may have CAs below it": (
        bound(
            verify,
            (
                make_leaf(make_app_ca(ROOT_PEM, extensions=[(OID_APP_ID, OTHER_APP)])),
                make_app_ca(ROOT_PEM, extensions=[(OID_APP_ID, OTHER_APP)]),
                ROOT_PEM,
            ),
        ),
        VerificationError,
        ("cert_usage",),
    ),
    "with an app id of 19 bytes": (
        bound(
            verify, (make_leaf(CA_PEM, extensions=[(OID_APP_ID, APP_ID[:19]), USAGE]), *CHAIN[1:])
        ),
        VerificationError,
        ("identity",),
    ),
    "with an app id and more": (
        bound(
            verify,
            (make_leaf(CA_PEM, extensions=[(OID_APP_ID, APP_ID + b"\0"), USAGE]), *CHAIN[1:]),
        ),
        VerificationError,
        ("identity",),
    ),
    "with a usage and a NUL": (
        bound(
            verify,
            (
                make_leaf(
                    CA_PEM,
                    extensions=[(OID_APP_ID, APP_ID), (OID_CERT_USAGE, b"app:custom\0")],
                ),
                *CHAIN[1:],
            ),
        ),
        VerificationError,
        ("cert_usage",),
    ),
    "that begins in a second": (
        bound(verify, (make_leaf(CA_PEM, not_before=NOW + 1), *CHAIN[1:])),
        CollateralExpiredError,
        ("cert_expired",),
    ),
    "that ended a second ago": (
        bound(verify, CHAIN, now=VALID["not_after"] + 1),
        CollateralExpiredError,
        ("cert_expired",),
    ),
    "for an app by its name": (bound(verify, app_id=APP_ID.hex()), UsageError, ("wrong_type",)),
    "for no app": (bound(verify, app_id=b""), UsageError, ("wrong_size",)),
    "without roots": (bound(verify, kms_roots=[]), UsageError, ("missing",)),
}
for _name, (_run, _error, _reasons) in CHAINS.items():
    attacks.add("recombine", f"certificate chain {_name}", _run, _error, *_reasons)


@attacks.attempt("exhaust", FormatError, "wrong_size", "too_large")
def certificate_chain_of_ten_thousand() -> object:
    """Certificates are counted before they are read."""
    return verify([CHAIN[0]] * 10_000)


# -- addresses ---------------------------------------------------------------------------------

assert parse_kms_url("https://kms.example:8000/prpc/").base == "https://kms.example:8000/prpc"
URLS: Final = {
    "without TLS": "http://kms.example",
    "of a file": "file:///etc/passwd",
    "with a user": "https://user:secret@kms.example",
    "with a user that is a host": "https://kms.example@evil.example",
    "with a question": "https://kms.example/prpc?x=",
    "with a fragment": "https://kms.example#.evil.example",
    "with a line end": "https://kms.example\r\nHost: evil.example",
    "with a tab": "https://kms\t.example",
    "with a space": "https://kms.example /x",
    "with a backslash": "https://kms.example\\.evil.example",
    "with letters of another script": "https://\u043ams.example",
    "with a port of six digits": "https://kms.example:100000",
    "with a port of letters": "https://kms.example:x",
    "with a negative port": "https://kms.example:-1",
    "with half an address": "https://[::1",
    "with an address and a zone": "https://[fe80::1%25eth0]",
    "without a host": "https:///prpc",
    "of 3,000 characters": "https://kms.example/" + "a" * 3000,
}
for _name, _url in URLS.items():
    _reason = "too_large" if len(_url) > 2048 else "wrong_value"
    attacks.add(
        "confuse", f"address of a KMS {_name}", bound(parse_kms_url, _url), ConfigError, _reason
    )


# -- pins --------------------------------------------------------------------------------------

PIN: Final = root_of(KMS)
assert KmsRoot.from_json(PIN.to_json()) == PIN
K256: Final = PIN.k256_public_key or b""
PINS: Final[dict[str, tuple[str, str]]] = {
    "with a key twice": (PIN.to_json().replace("{", '{"ca_spki": "00",', 1), "duplicate"),
    "with an unknown key": (PIN.to_json().replace("{", '{"insecure": true,', 1), "unknown_key"),
    "with a key in capitals": (PIN.to_json().replace("ca_spki", "CA_SPKI"), "unknown_key"),
    "in a list": (f"[{PIN.to_json()}]", "wrong_type"),
    "with text behind": (PIN.to_json() + "{}", "syntax"),
    "with a key that is not on its curve": (
        PIN.to_json().replace(K256.hex(), "02" + "ff" * 32),
        "wrong_value",
    ),
    "with a key as nothing": ('{"ca_spki": null}', "missing"),
    "that is empty": ("{}", "missing"),
}
for _name, (_text, _reason) in PINS.items():
    attacks.add(
        "confuse", f"pin of a KMS {_name}", bound(KmsRoot.from_json, _text), ConfigError, _reason
    )
for _name, _ca, _k256, _reason in (
    ("with the key of the wrong curve", K256, None, "wrong_size"),
    ("with a key of zeros", bytes(91), None, "invalid_key"),
    ("with its second key uncompressed", PIN.ca_spki, b"\4" + bytes(64), "wrong_size"),
    ("with its second key as text", PIN.ca_spki, K256.hex(), "wrong_type"),
    (
        "with its second key for Ed25519",
        PIN.ca_spki,
        K256Key(b"\5" * 32).public_key[1:],
        "wrong_size",
    ),
):
    attacks.add(
        "confuse", f"root {_name}", bound(KmsRoot, _ca, untyped(_k256)), UsageError, _reason
    )
