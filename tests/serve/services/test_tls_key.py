"""GetTlsKey: certificates and refused requests."""

from typing import Any

import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit.keys import AppKeys, derive_p256
from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client
from tests.serve.guests import NOW, Counting, GuestClient, MakeGuest, vector_keys
from tests.serve.services.test_request_fields import VALID
from tests.vectors import needs_shared


def _chain(response: Any) -> list[Certificate]:
    return [read_certificate(pem) for pem in response["certificate_chain"]]


def test_get_tls_key_defaults(guest: Guest, dstack: Client) -> None:
    """By default: a new key, default validity, no evidence."""
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


def test_get_tls_key_uses_random_bytes(dstack: Client) -> None:
    """The key is derived from 32 random bytes and encoded as PKCS#8 PEM."""
    made = dstack.post("/GetTlsKey").json()
    key = derive_p256(bytes(range(1, 33)))  # the fake random bytes of the test guest
    assert made["key"] == key.pkcs8_pem
    assert made["key"].endswith("\n-----END PRIVATE KEY-----\n")
    assert len(key.pkcs8_der) == 138
    assert _chain(made)[0].spki_der == key.spki_der


SERVER, CLIENT = "06082b06010505070301", "06082b06010505070302"  # extKeyUsage


@pytest.mark.parametrize(
    ("server", "client", "usages"),
    [
        (False, False, None),
        (True, False, f"300a{SERVER}"),
        (False, True, f"300a{CLIENT}"),
        (True, True, f"3014{SERVER}{CLIENT}"),
    ],
)
def test_get_tls_key_extended_key_usage(
    dstack: Client,
    tappd: Client,
    server: bool,
    client: bool,
    usages: str | None,
) -> None:
    """The certificate has exactly the requested usages, also from DeriveKey."""
    asked = {"usage_server_auth": server, "usage_client_auth": client}
    for made in (dstack.post("/GetTlsKey", asked), tappd.post("/prpc/DeriveKey", asked)):
        leaf, _ = _chain(made.json())
        found = leaf.extensions.get("2.5.29.37")
        assert (None if found is None else found.hex()) == usages


def test_get_tls_key_all_options(dstack: Client) -> None:
    """Each option appears in the certificate, and the evidence binds its key."""
    response = dstack.post("/GetTlsKey", VALID["GetTlsKey"]).json()
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
def test_get_tls_key_zero_validity_is_unset(
    dstack: Client, first: int | None, last: int, valid_from: int, valid_until: int
) -> None:
    """Zero means unset, for each limit separately."""
    message = {"not_before": first, "not_after": last}
    leaf, _ = _chain(dstack.post("/GetTlsKey", message).json())
    assert (leaf.valid_from.timestamp(), leaf.valid_until.timestamp()) == (valid_from, valid_until)


@needs_shared
@pytest.mark.parametrize("path", ["/GetTlsKey", "/v0/GetTlsKey", "/v1/IssueCert"])
def test_get_tls_key_with_key_of_invalid_kms_is_refused(
    make_guest: MakeGuest, guest_client: GuestClient, path: str
) -> None:
    """A key file whose KMS has an invalid CA gives no certificates; other methods work."""
    kms = {"url": "https://kms", "pubkey": "00", "tmp_ca_key": "", "tmp_ca_cert": ""}
    guest = make_guest(Counting, app_keys=vector_keys(key_provider={"Kms": kms}))
    assert isinstance(guest.attester.backend, Counting)
    client = guest_client("dstack", guest)
    response = client.post(path)
    assert response.status == 500
    assert response.error().startswith("Failed to sign the CSR: ")
    assert "KMS" in response.error()
    assert guest.attester.backend.quotes == 0
    assert client.get("/Info").json()["app_cert"] == ""
    assert client.get("/GetKey").status == 200


def test_get_tls_key_broken_ca_is_500(guest_client: GuestClient) -> None:
    """A broken CA is an internal error."""
    good = AppKeys.from_seed(bytes(32))
    keys = AppKeys(k256_key=good.k256_key, ca_cert="no certificate", ca_key=good.ca_key)
    client = guest_client("dstack", app_keys=keys)
    response = client.post("/GetTlsKey")
    assert response.status == 500
    assert response.error().startswith("Failed to sign the CSR: ")
    assert client.get("/Info").json()["app_cert"] == ""
