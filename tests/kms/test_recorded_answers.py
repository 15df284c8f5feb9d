"""The recorded answers of the real KMS, replayed over TLS: the client takes each as it should.

Values that differ in another run of the KMS are cut in the record, and filled in here: certificates
of the same roots, and signatures over a time.
"""

import json
from typing import Any, Final

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.x509.app_certificates import (
    certificate_pem,
    issue_ca,
    issue_leaf,
    read_certificate,
)
from attestkit.errors import KmsError
from attestkit.kms import CertRequest, KmsRoot
from attestkit.kms.https_call import anonymous_context, call_kms, rooted_context
from attestkit.kms.release.certificates import issue_root
from attestkit.kms.url import parse_kms_url
from attestkit.ra_tls.issuance import Issued
from attestkit.report_data import ReportData
from tests.kms.replayed_kms import (
    APP_ID,
    LIMITS,
    WINDOW,
    Guest,
    client_of,
    keys_of,
    make_roots,
    root_of,
    running,
    sound,
    temp_ca_of,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, load, needs_shared

UPSTREAM: Final = "dstack/upstream-312dc605/"
RECORD: dict[str, Any] = json.loads(data(f"{UPSTREAM}kms.json") or b'{"rows":[]}')
ROWS: list[dict[str, Any]] = [row for row in RECORD["rows"] if row["listener"] == "rpc"]
BY_ID: dict[str, dict[str, Any]] = {row["id"]: row for row in reversed(ROWS)}
KEYS = load("kms.json").get("roots", {}).get("A")
# Root A, of which the record is; another one without the vectors, where the tests are skipped.
ROOTS = make_roots(
    bytes.fromhex(KEYS["root_ca_scalar"]) if KEYS else 1,
    bytes.fromhex(KEYS["root_k256_key"]) if KEYS else 2,
)
LEAF_KEY: Final = P256Key.from_scalar(b"\x21" * 32)


def method_of(row: dict[str, Any]) -> str:
    """Return the method that a row calls."""
    name = str(row["path"]).removeprefix("/prpc/").partition("?")[0]
    return name.removeprefix("KMS.").removeprefix("KMS.")


def has_json(row: dict[str, Any]) -> bool:
    """Return whether the whole answer is in the record, or in that of another row."""
    return "json" in row or "same_as" in row


def answer_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of an answer, without what was cut."""
    found = dict(BY_ID[row["same_as"]]["json"] if "same_as" in row else row["json"])
    filled = temp_ca_of(ROOTS)
    for name, value in found.items():
        if name in filled and isinstance(value, str) and "\u2026" in value:
            found[name] = filled[name]
    if found.get("bootstrap_info"):
        bootstrap = json.loads(data(f"{UPSTREAM}kms_bootstrap.json"))
        found["bootstrap_info"] = {name: bootstrap[name] for name in found["bootstrap_info"]}
    return found


def body_of(row: dict[str, Any]) -> bytes:
    """Return the body of an answer as it was sent."""
    if "hex" in row:
        return bytes.fromhex(row["hex"])
    if has_json(row):
        return json.dumps(answer_of(row)).encode()
    if "error" in row:
        return json.dumps({"error": row["error"]}).encode()
    return str(row.get("page", row.get("text", ""))).encode()


def text_of(row: dict[str, Any]) -> str:
    """Return the text of a refusal as an error shows it: on one line."""
    return " ".join(str(row.get("error", "HTTP status 404")).split())[:250]


def rows(*methods: str, status: int, whole: bool = True) -> pytest.MarkDecorator:
    """Return a parametrization by the rows of methods with a status."""
    found = [
        row
        for row in ROWS
        if method_of(row) in methods and row["status"] == status and (has_json(row) or not whole)
    ]
    return pytest.mark.parametrize("row", found, ids=lambda row: row["id"])


@needs_shared
@every_case(
    "row", [row for row in ROWS if row["status"]], ids=lambda row: f"{row['id']}-{row['status']}"
)
def test_every_recorded_status_is_taken_as_answer_or_refusal(row: dict[str, Any]) -> None:
    """A successful answer is returned unchanged; each refusal has its text, also in protobuf."""
    reply = row["status"], body_of(row)
    with running(ROOTS, lambda _: reply) as server:
        url = parse_kms_url(server.url)

        def call() -> bytes:
            return call_kms(url, "Method", {}, anonymous_context(), limits=LIMITS)

        if row["status"] == 200:
            assert call() == reply[1]
            return
        with raises(KmsError, "refused", part=text_of(row)):
            call()


@needs_shared
@rows("GetAppKey", status=200)
def test_recorded_keys_are_taken_for_their_image(row: dict[str, Any]) -> None:
    """Keys are those of the vectors, and taken only with the image of the VM's configuration."""
    answer = answer_of(row)
    image = answer["os_image_hash"]
    with running(ROOTS, sound(ROOTS, GetAppKey=answer)) as server:
        if image == "bb" * 32:
            found = client_of(server).fetch_app_keys()
            expected = keys_of(ROOTS)
            assert found.app_keys.k256_key.hex() == answer["k256_key"] == expected["k256_key"]
            assert found.app_keys.env_crypt_key.hex() == answer["env_crypt_key"]
            assert found.app_keys.disk_crypt_key.hex() == answer["disk_crypt_key"]
            assert found.app_keys.gateway_app_id == answer["gateway_app_id"]
            assert (found.root, found.not_proven) == (root_of(ROOTS), ())
            return
        with raises(KmsError, "wrong_image"):
            client_of(server).fetch_app_keys()


@needs_shared
@rows("GetAppKey", status=400, whole=False)
def test_recorded_refusal_of_keys_is_reported(row: dict[str, Any]) -> None:
    """Each refusal of GetAppKey is reported with its text."""
    respond = sound(ROOTS, GetAppKey=(400, body_of(row)))
    refused = raises(KmsError, "refused", part=text_of(row))
    with running(ROOTS, respond) as server, refused as caught:
        client_of(server).fetch_app_keys()
    assert caught.value.url == f"{server.url}/prpc"


@needs_shared
@rows("GetMeta", status=200)
def test_recorded_meta_is_compared_with_the_pins(row: dict[str, Any]) -> None:
    """The meta data of root A are accepted, those of the other KMSs are not."""
    answer = answer_of(row)
    if "\u2026" in answer["ca_cert"]:
        answer["ca_cert"] = issue_root(ROOTS, WINDOW)
    with running(ROOTS, sound(ROOTS, GetMeta=answer)) as server:
        if answer["k256_pubkey"] != KEYS["root_k256_public_key"]:
            with raises(KmsError, "wrong_root"):
                client_of(server).get_meta()
        roots = [KmsRoot(ROOTS.ca_key.spki_der, bytes.fromhex(answer["k256_pubkey"]))]
        found = client_of(server, roots=roots).get_meta()
    assert found.k256_public_key.hex() == answer["k256_pubkey"]
    names = ("allow_any_upgrade", "is_dev", "gateway_app_id", "kms_contract_address", "chain_id")
    assert {name: getattr(found, name) for name in names} == {name: answer[name] for name in names}
    if answer["bootstrap_info"] is not None:
        assert found.bootstrap is not None
        assert found.bootstrap.k256_public_key == found.k256_public_key
        assert found.bootstrap.attestation.hex() == answer["bootstrap_info"]["attestation"]


@needs_shared
@rows("GetTempCaCert", status=400, whole=False)
def test_recorded_refusal_of_a_temporary_ca_is_reported(row: dict[str, Any]) -> None:
    """A KMS that is not authorized itself refuses the first request."""
    respond = sound(ROOTS, GetTempCaCert=(400, body_of(row)))
    refused = raises(KmsError, "refused", part=text_of(row))
    with running(ROOTS, respond) as server, refused:
        client_of(server).fetch_app_keys()


@needs_shared
def test_recorded_temporary_ca_is_used() -> None:
    """The answer of the real KMS has the members that the client needs."""
    answer = answer_of(BY_ID["gettempcacert"])
    with running(ROOTS, sound(ROOTS, GetTempCaCert=answer)) as server:
        assert client_of(server).get_app_keys().key_provider == "kms"


@needs_shared
@rows("GetAppEnvEncryptPubKey", status=200)
def test_recorded_env_key_is_taken_with_a_fresh_signature(row: dict[str, Any]) -> None:
    """Key and legacy signature are the recorded ones; the signature over the time is made anew."""
    answer = answer_of(row)
    moment = answer["timestamp"]
    signed = b"dstack-env-encrypt-pubkey:" + APP_ID + moment.to_bytes(8, "big")
    signed += bytes.fromhex(answer["public_key"])
    answer["signature_v1"] = ROOTS.k256_key.sign_recoverable(keccak256(signed)).hex()
    with running(ROOTS, sound(ROOTS, GetAppEnvEncryptPubKey=answer)) as server:
        found = client_of(server, now=lambda: moment).env_public_key(APP_ID)
    assert found.hex() == answer["public_key"]


@needs_shared
@rows("GetAppEnvEncryptPubKey", "SignCert", status=400, whole=False)
def test_other_recorded_refusals_are_reported(row: dict[str, Any]) -> None:
    """Each refusal of a public key or a certificate is reported with its text."""
    method = method_of(row)
    bound = ReportData.bind(ReportData.RATLS_CERT, LEAF_KEY.spki_der)
    with running(ROOTS, sound(ROOTS, **{method: (400, body_of(row))})) as server:
        client = client_of(server)
        with raises(KmsError, "refused", part=text_of(row)):
            if method == "SignCert":
                request = CertRequest(LEAF_KEY.spki_der, "a", Guest().attest(report_data=bound))
                client.sign_certificate(request, LEAF_KEY)
            else:
                client.env_public_key(APP_ID)


def test_tls_alert_about_the_client_certificate_is_a_failed_connection() -> None:
    """The real KMS refuses certificates of another CA by an alert, and resets the connection.

    Whichever the client sees first, the request has failed.
    """
    window: dict[str, Any] = {"not_before": 0, "not_after": WINDOW.not_after}
    other = certificate_pem(issue_ca(key=LEAF_KEY, subject="self", path_length=0, **window))
    leaf = certificate_pem(
        issue_leaf(public_key=LEAF_KEY, subject="a", ca_cert=other, ca_key=LEAF_KEY, **window)
    )
    context = rooted_context(
        read_certificate(issue_root(ROOTS, WINDOW)), Issued(LEAF_KEY.pkcs8_pem, (leaf,))
    )
    with running(ROOTS, sound(ROOTS)) as server:
        url = parse_kms_url(server.url)
        with raises(KmsError, "connection"):
            call_kms(url, "GetMeta", {}, context, limits=LIMITS)
    assert not server.requests
