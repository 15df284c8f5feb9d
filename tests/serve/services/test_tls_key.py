"""GetTlsKey: what its certificates say, and which requests no certificate can answer."""

import asyncio
from typing import Any

import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit.keys import AppKeys, derive_p256
from attestkit.serve import listener_apps
from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client
from tests.serve.guests import NOW, Counting, MakeGuest, vector_keys
from tests.vectors import needs_shared

WHOLE = {
    "subject": "a",
    "alt_names": ["b", "::1"],
    "usage_ra_tls": True,
    "usage_server_auth": True,
    "usage_client_auth": True,
    "not_before": 1_700_000_000,
    "not_after": 1_900_000_000,
    "with_app_info": True,
}


def _chain(response: Any) -> list[Certificate]:
    return [read_certificate(pem) for pem in response["certificate_chain"]]


def test_get_tls_key_of_defaults(guest: Guest, dstack: Client) -> None:
    """Without options: a new key each time, default validity, no evidence in the certificate."""
    response = dstack.post("/GetTlsKey").json()
    assert list(response) == ["key", "certificate_chain"]
    assert response["key"].startswith("-----BEGIN PRIVATE KEY-----\n")
    leaf, authority = _chain(response)
    assert (leaf.subject, leaf.issuer) == ("", authority.subject)
    assert leaf.valid_from.timestamp() == 157_766_400
    assert leaf.valid_until.timestamp() == NOW + 3650 * 86_400
    assert leaf.alt_names == ()
    assert leaf.content(ra_tls.OID_ATTESTATION) is None
    assert guest.app_keys is not None
    assert response["certificate_chain"][1] == guest.app_keys.ca_cert


def test_the_key_is_made_of_random_bytes(dstack: Client) -> None:
    """The key is that of 32 random bytes without a path, PKCS#8 in PEM to its last line end."""
    made = dstack.post("/GetTlsKey").json()
    key = derive_p256(bytes(range(1, 33)))  # what the guest of the tests has for random
    assert made["key"] == key.pkcs8_pem
    assert made["key"].endswith("\n-----END PRIVATE KEY-----\n")
    assert len(key.pkcs8_der) == 138
    assert _chain(made)[0].spki_der == key.spki_der


SERVER, CLIENT = "06082b06010505070301", "06082b06010505070302"  # of extKeyUsage


@pytest.mark.parametrize(
    ("server", "client", "usages"),
    [
        (False, False, None),
        (True, False, f"300a{SERVER}"),
        (False, True, f"300a{CLIENT}"),
        (True, True, f"3014{SERVER}{CLIENT}"),
    ],
)
def test_usages(
    dstack: Client,
    tappd: Client,
    server: bool,
    client: bool,
    usages: str | None,
) -> None:
    """Each usage is in the certificate if it was asked for, and only then; of old keys too."""
    asked = {"usage_server_auth": server, "usage_client_auth": client}
    for made in (dstack.post("/GetTlsKey", asked), tappd.post("/prpc/DeriveKey", asked)):
        leaf, _ = _chain(made.json())
        found = leaf.extensions.get("2.5.29.37")
        assert (None if found is None else found.hex()) == usages


def test_get_tls_key_with_everything(dstack: Client) -> None:
    """Each option shows in the certificate, and the evidence is about its key."""
    response = dstack.post("/GetTlsKey", WHOLE).json()
    leaf, _ = _chain(response)
    assert (leaf.subject, leaf.alt_names) == ("CN=a", ("b", "::1"))
    assert leaf.valid_from.timestamp() == 1_700_000_000
    assert leaf.valid_until.timestamp() == 1_900_000_000
    assert leaf.content(ra_tls.OID_APP_INFO) is not None
    evidence = ra_tls.read(leaf.der)
    assert evidence.quote is not None


@pytest.mark.parametrize(
    ("first", "last", "valid_from", "valid_until"),
    [
        (0, 0, 157_766_400, NOW + 3650 * 86_400),
        (1_700_000_000, 0, 1_700_000_000, NOW + 3650 * 86_400),
        (0, 1_700_000_000, 157_766_400, 1_700_000_000),
        (None, 1_700_000_000, 157_766_400, 1_700_000_000),
        (11, 12, 11, 12),
    ],
)
def test_zero_is_no_limit(
    dstack: Client, first: int | None, last: int, valid_from: int, valid_until: int
) -> None:
    """Zero means unset, for each of the two by itself."""
    message = {"not_before": first, "not_after": last}
    leaf, _ = _chain(dstack.post("/GetTlsKey", message).json())
    assert (leaf.valid_from.timestamp(), leaf.valid_until.timestamp()) == (valid_from, valid_until)


@pytest.mark.parametrize(("first", "last"), [(11, 11), (12, 11), (2**64 - 1, 1)])
def test_validity_must_have_an_order(dstack: Client, first: int, last: int) -> None:
    """Two limits that leave nothing between them are refused."""
    response = dstack.post("/GetTlsKey", {"not_before": first, "not_after": last})
    assert response.status == 400
    assert response.error() == "not_before must be earlier than not_after"


@pytest.mark.parametrize(
    "message",
    [
        {"subject": "x" * 65},
        {"alt_names": ["größe"]},
        {"not_after": 2**64 - 1},
        {"not_before": 2**63},
        {"not_after": 253_402_300_800},
        {"not_before": NOW * 2},
    ],
)
def test_what_a_certificate_cannot_say(dstack: Client, message: dict[str, Any]) -> None:
    """Values that X.509 cannot hold are the caller's mistake."""
    response = dstack.post("/GetTlsKey", message)
    assert response.status == 400
    response.error()


@needs_shared
def test_certificates_of_a_kms_are_refused_clearly(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """With keys from a KMS there is no authority here: GetTlsKey says so, all else works."""
    kms = {"url": "https://kms", "pubkey": "00", "tmp_ca_key": "", "tmp_ca_cert": ""}
    guest = make_guest(Counting, app_keys=vector_keys(key_provider={"Kms": kms}))
    assert isinstance(guest.attester.backend, Counting)
    client = Client(listener_apps.dstack_app(guest), loop)
    response = client.post("/GetTlsKey")
    assert response.status == 500
    assert response.error().startswith("Failed to sign the CSR: ")
    assert "KMS" in response.error()
    assert guest.attester.backend.quotes == 0
    assert client.get("/Info").json()["app_cert"] == ""
    assert client.get("/GetKey").status == 200


def test_an_authority_that_cannot_sign(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """What is wrong with the authority is not the caller's mistake."""
    good = AppKeys.from_seed(bytes(32))
    keys = AppKeys(k256_key=good.k256_key, ca_cert="no certificate", ca_key=good.ca_key)
    client = Client(listener_apps.dstack_app(make_guest(app_keys=keys)), loop)
    response = client.post("/GetTlsKey")
    assert response.status == 500
    assert response.error().startswith("Failed to sign the CSR: ")
    assert client.get("/Info").json()["app_cert"] == ""
