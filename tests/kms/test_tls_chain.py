"""Chains of an app's certificate are verified up to a pinned KMS, by app id and never by name."""

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.app_certificates import (
    certificate_pem,
    issue_ca,
    issue_leaf,
    read_certificate,
)
from attestkit.errors import (
    AttestKitError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.kms import KmsRoot, verify_app_certificate
from attestkit.kms.tls_chain import MAX_LEAF, require_kms_usage
from attestkit.ra_tls import OID_APP_ID, OID_CERT_USAGE
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

NOW = 1_790_000_000
APP_ID = b"\xab" * 20
ROOT_KEY, CA_KEY, LEAF_KEY, OTHER_KEY = (
    P256Key.from_scalar(bytes(31) + bytes([number])) for number in (1, 2, 3, 4)
)
ROOT = KmsRoot(ROOT_KEY.spki_der)
VALID: dict[str, Any] = {"not_before": 157_766_400, "not_after": NOW + 1000}
UPSTREAM = "dstack/upstream-312dc605/"


def make_root(key: P256Key = ROOT_KEY, **changes: Any) -> str:
    """Return a root certificate in PEM."""
    fields = {"subject": "Dstack KMS CA", "path_length": 1, **VALID, **changes}
    return certificate_pem(issue_ca(key=key, **fields))


def make_app_ca(root: str, root_key: P256Key = ROOT_KEY, **changes: Any) -> str:
    """Return an app CA's certificate in PEM."""
    fields: dict[str, Any] = {
        "subject": "Dstack App CA",
        "path_length": 0,
        "extensions": [(OID_APP_ID, APP_ID), (OID_CERT_USAGE, b"app:ca")],
        **VALID,
        **changes,
    }
    return certificate_pem(issue_ca(key=CA_KEY, issuer=(root, root_key), **fields))


def make_leaf(app_ca: str, **changes: Any) -> str:
    """Return an app's certificate in PEM."""
    fields: dict[str, Any] = {
        "public_key": LEAF_KEY,
        "subject": "any.example.com",
        "extensions": [(OID_APP_ID, APP_ID), (OID_CERT_USAGE, b"app:custom")],
        "ca_cert": app_ca,
        "ca_key": CA_KEY,
        **VALID,
        **changes,
    }
    return certificate_pem(issue_leaf(**fields))


ROOT_PEM = make_root()
CA_PEM = make_app_ca(ROOT_PEM)
CHAIN = (make_leaf(CA_PEM), CA_PEM, ROOT_PEM)


def verify(chain: Any = CHAIN, **changes: Any) -> Any:
    """Verify a chain of the app."""
    return verify_app_certificate(
        chain, **{"app_id": APP_ID, "kms_roots": [ROOT], "now": NOW, **changes}
    )


def test_sound_chain_is_accepted() -> None:
    """The result has the verified key, the app and the pin that matched."""
    found = verify()
    assert (found.app_id, found.spki, found.root) == (APP_ID, LEAF_KEY.spki_der, ROOT)
    assert found.der == read_certificate(CHAIN[0]).der
    assert verify("".join(CHAIN)) == found
    assert verify(list(CHAIN), now=datetime.fromtimestamp(NOW, timezone.utc)) == found
    several = [KmsRoot(OTHER_KEY.spki_der), ROOT]
    assert verify(kms_roots=several).root == ROOT
    without = make_leaf(CA_PEM, extensions=[(OID_CERT_USAGE, b"app:custom")])
    assert verify((without, *CHAIN[1:])).app_id == APP_ID


@needs_shared
def test_chain_of_real_kms_is_accepted() -> None:
    """The chain that the real KMS signed leads to its root, for its app."""
    key = json.loads(data(f"{UPSTREAM}tls_key.json"))
    root = KmsRoot(bytes.fromhex(load("kms.json")["roots"]["A"]["root_ca_spki"]))
    app_id = bytes.fromhex("5bb4ff9a3837357f19dc176407a5709c62eb6c56")
    found = verify(key["certificate_chain"], app_id=app_id, kms_roots=[root])
    assert found.spki == P256Key.from_pem(key["key"]).spki_der
    with raises(VerificationError, "identity"):
        verify(key["certificate_chain"], kms_roots=[root])
    with raises(SignatureError, "untrusted_root"):
        verify(key["certificate_chain"], app_id=app_id)


@needs_shared
def test_certificate_of_real_kms_has_its_usage() -> None:
    """The real KMS's server certificate has the usage; its app's certificate does not."""
    server, root = split_pem(data(f"{UPSTREAM}kms_rpc.pem").decode())
    require_kms_usage(server)
    with raises(VerificationError, "cert_usage"):
        require_kms_usage(root)
    key = json.loads(data(f"{UPSTREAM}tls_key.json"))
    for pem in key["certificate_chain"][:2]:
        with raises(VerificationError, "cert_usage"):
            require_kms_usage(split_pem(pem)[0])
    with raises(FormatError, "wrong_size"):
        verify(data(f"{UPSTREAM}kms_rpc.pem").decode())


OTHER_ROOT = make_root(OTHER_KEY)
OTHER_CA = make_app_ca(OTHER_ROOT, OTHER_KEY)
EXTENSIONS = {
    "wrong app": [(OID_APP_ID, bytes(20)), (OID_CERT_USAGE, b"app:ca")],
    "no app": [(OID_CERT_USAGE, b"app:ca")],
    "no usage": [(OID_APP_ID, APP_ID)],
    "usage of a leaf": [(OID_APP_ID, APP_ID), (OID_CERT_USAGE, b"app:custom")],
}


def chain_under(app_ca: str, **changes: Any) -> tuple[str, str, str]:
    """Return a chain with another app CA or another leaf."""
    return make_leaf(app_ca, **changes), app_ca, ROOT_PEM


def usage(value: bytes) -> dict[str, Any]:
    """Return the change to another usage of the leaf."""
    return {"extensions": [(OID_APP_ID, APP_ID), (OID_CERT_USAGE, value)]}


WRONG: dict[str, tuple[Any, type[AttestKitError], str]] = {
    "other root": ((make_leaf(OTHER_CA), OTHER_CA, OTHER_ROOT), SignatureError, "untrusted_root"),
    "app CA of another root": (
        (make_leaf(OTHER_CA), OTHER_CA, ROOT_PEM),
        SignatureError,
        "untrusted_root",
    ),
    "leaf under another app CA": (
        (make_leaf(CA_PEM), OTHER_CA, ROOT_PEM),
        SignatureError,
        "untrusted_root",
    ),
    "leaf signed by another key": (
        (
            make_leaf(
                certificate_pem(
                    issue_ca(key=OTHER_KEY, subject="Dstack App CA", path_length=0, **VALID)
                ),
                ca_key=OTHER_KEY,
            ),
            CA_PEM,
            ROOT_PEM,
        ),
        SignatureError,
        "cert_bad_signature",
    ),
    "app CA of another app": (
        chain_under(make_app_ca(ROOT_PEM, extensions=EXTENSIONS["wrong app"])),
        VerificationError,
        "identity",
    ),
    "app CA without app": (
        chain_under(make_app_ca(ROOT_PEM, extensions=EXTENSIONS["no app"])),
        VerificationError,
        "identity",
    ),
    "app CA without usage": (
        chain_under(make_app_ca(ROOT_PEM, extensions=EXTENSIONS["no usage"])),
        VerificationError,
        "cert_usage",
    ),
    "app CA with usage of a leaf": (
        chain_under(make_app_ca(ROOT_PEM, extensions=EXTENSIONS["usage of a leaf"])),
        VerificationError,
        "cert_usage",
    ),
    "leaf of another app": (
        chain_under(CA_PEM, extensions=[(OID_APP_ID, bytes(20)), (OID_CERT_USAGE, b"app:custom")]),
        VerificationError,
        "identity",
    ),
    "KMS as leaf": (chain_under(CA_PEM, **usage(b"kms:rpc")), VerificationError, "cert_usage"),
    "CA as leaf": (chain_under(CA_PEM, **usage(b"app:ca")), VerificationError, "cert_usage"),
    "no usage": (
        chain_under(CA_PEM, extensions=[(OID_APP_ID, APP_ID)]),
        VerificationError,
        "cert_usage",
    ),
    "expired leaf": (
        chain_under(CA_PEM, not_after=NOW - 1),
        CollateralExpiredError,
        "cert_expired",
    ),
    "expired app CA": (
        chain_under(make_app_ca(ROOT_PEM, not_after=NOW - 1)),
        CollateralExpiredError,
        "cert_expired",
    ),
    "expired root": (
        (*CHAIN[:2], make_root(not_after=NOW - 1)),
        CollateralExpiredError,
        "cert_expired",
    ),
    "root allows no CA": (
        (*CHAIN[:2], make_root(path_length=0)),
        SignatureError,
        "cert_not_authority",
    ),
    "CA as end entity": ((CA_PEM, ROOT_PEM, ROOT_PEM), SignatureError, "cert_not_authority"),
    "two certificates": (CHAIN[:2], FormatError, "wrong_size"),
    "four certificates": ((*CHAIN, ROOT_PEM), FormatError, "wrong_size"),
    "four in one text": ("".join((*CHAIN, ROOT_PEM)), FormatError, "wrong_size"),
    "nothing": ("", FormatError, "syntax"),
    "not X.509": (
        (encode_pem("CERTIFICATE", b"\x30\0"), *CHAIN[1:]),
        FormatError,
        "truncated",
    ),
    "too large": (
        (encode_pem("CERTIFICATE", bytes(MAX_LEAF + 1)), *CHAIN[1:]),
        FormatError,
        "too_large",
    ),
    "too much text": (" " * (2 << 20) + CHAIN[0], FormatError, "too_large"),
    "bytes": (CHAIN[0].encode(), UsageError, "wrong_type"),
    "items of another type": ([1, 2, 3], UsageError, "wrong_type"),
}


@every_case("name", WRONG)
def test_other_chain_is_refused(name: str) -> None:
    """Every chain with another key, app, usage, time or length is refused with its reason."""
    chain, kind, reason = WRONG[name]
    with raises(kind, reason):
        verify(chain)


def test_every_changed_byte_of_the_leaf_is_refused() -> None:
    """No byte of the signed part or of the signatures below the root can be changed."""
    for place in (0, 1):
        der = split_pem(CHAIN[place])[0]
        for at in range(len(der)):
            changed = list(CHAIN)
            changed[place] = encode_pem(
                "CERTIFICATE", der[:at] + bytes([der[at] ^ 1]) + der[at + 1 :]
            )
            with pytest.raises((FormatError, VerificationError)):
                verify(changed)


@every_case(
    ("changes", "reason"),
    [
        ({"app_id": b""}, "wrong_size"),
        ({"app_id": APP_ID.hex()}, "wrong_type"),
        ({"kms_roots": []}, "missing"),
        ({"kms_roots": ROOT}, "wrong_type"),
        ({"now": "now"}, "wrong_type"),
        ({"now": float("nan")}, "out_of_range"),
        ({"now": float("inf")}, "out_of_range"),
        ({"now": 1e18}, "out_of_range"),
        ({"now": -(10**30)}, "out_of_range"),
        ({"now": datetime(2026, 1, 1)}, "wrong_value"),  # noqa: DTZ001
    ],
)
def test_malformed_argument_is_usage_error(changes: dict[str, Any], reason: str) -> None:
    """App id, roots and time are required in the right form."""
    with raises(UsageError, reason):
        verify(**changes)


def test_usage_must_be_one_string() -> None:
    """A usage extension with other content is malformed."""
    der = split_pem(make_leaf(CA_PEM))[0]
    require = untyped(require_kms_usage)
    with raises(VerificationError, "cert_usage"):
        require(der)
    broken = der.replace(b"\x04\x0aapp:custom", b"\x05\x0aapp:custom")
    assert broken != der
    with raises(FormatError, "syntax"):
        require(broken)
