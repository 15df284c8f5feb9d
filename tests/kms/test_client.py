"""The client takes keys only from a pinned KMS, after all checks, and reports every failure."""

import json
import logging
import socket
import ssl
import threading
from typing import Any

import pytest
from cryptography import x509

from attestkit import ra_tls
from attestkit._crypto.ecdsa import K256Key
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import certificate_pem
from attestkit._system.clock import current_time
from attestkit.errors import ConfigError, KmsError, UsageError
from attestkit.kms import KmsClient, KmsRoot
from attestkit.kms.client import MAX_URLS
from attestkit.kms.https_call import TimeLimits
from attestkit.kms.release.certificates import (
    ValidityPeriod,
    issue_root,
    issue_temp_ca,
)
from attestkit.kms.release.roots import sign_env_public_key
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy
from tests.kms.replayed_kms import (
    APP_ID,
    BOOT,
    IMAGE_HASH,
    VM_CONFIG,
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
from tests.untyped import untyped
from tests.verifier.platforms import intel

ROOTS = make_roots(1, 2)
OTHER = make_roots(3, 4)
ROOT = root_of(ROOTS)


def test_keys_are_fetched_and_checked() -> None:
    """A sound KMS: one anonymous request, then one with evidence; the keys are complete."""
    guest = Guest()
    with running(ROOTS, sound(ROOTS)) as server:
        found = client_of(server, attester=guest, app_id=APP_ID).fetch_app_keys()
    keys, expected = found.app_keys, keys_of(ROOTS)
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature"):
        assert getattr(keys, name).hex() == expected[name]
    assert (keys.key_provider, keys.key_provider_id) == ("kms", ROOT.provider_id)
    assert (keys.gateway_app_id, keys.ca_cert) == ("any", issue_root(ROOTS, WINDOW))
    assert keys.kms_provider is not None
    assert keys.kms_provider.url == found.url == f"{server.url}/prpc"
    assert keys.kms_provider.tmp_ca_key == ROOTS.temp_ca_key.pkcs8_pem
    assert (found.root, found.os_image_hash, found.not_proven) == (ROOT, IMAGE_HASH, ())
    assert found.evidence is None
    first, second = server.requests
    assert (first.method, first.body, first.certificate) == ("GetTempCaCert", {}, None)
    assert second.body == {"api_version": 1, "vm_config": VM_CONFIG}
    assert len(guest.requests) == 1


def test_client_certificate_has_the_specified_form() -> None:
    """The certificate is that of dstack's guests, and its evidence is over its key."""
    with running(ROOTS, sound(ROOTS)) as server:
        client_of(server).get_app_keys()
    der = server.requests[1].certificate
    assert der is not None
    certificate = x509.load_der_x509_certificate(der)
    assert certificate.subject.rfc4514_string() == "CN=RA-TLS TEMP Cert"
    assert certificate.issuer.rfc4514_string() == "CN=Dstack Client Temp CA,O=Dstack"
    assert certificate.not_valid_before_utc.year == 1975
    oids = [extension.oid.dotted_string for extension in certificate.extensions]
    assert oids == ["2.5.29.15", ra_tls.OID_ATTESTATION]
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_agreement
    lifetime = certificate.not_valid_after_utc.timestamp() - seconds_now()
    assert 3649 * 86_400 < lifetime <= 3650 * 86_400
    evidence = ra_tls.read(der)  # checks the binding
    assert evidence == evidence.stripped()


def seconds_now() -> float:
    """Return the time."""
    return current_time()


def with_keys(**changes: Any) -> Any:
    """Return the answers with changed keys."""
    return sound(ROOTS, GetAppKey=keys_of(ROOTS, **changes))


REFUSED: dict[str, tuple[Any, str]] = {
    "denied": (
        sound(ROOTS, GetAppKey=(400, b'{"error":"App not allowed: Boot denied: no"}')),
        "refused",
    ),
    "denied in protobuf": (sound(ROOTS, GetAppKey=(400, b"\n\x02no")), "refused"),
    "without a text": (sound(ROOTS, GetAppKey=(404, b"<html>")), "refused"),
    "failed": (sound(ROOTS, GetAppKey=(500, b"")), "connection"),
    "redirect": (sound(ROOTS, GetAppKey=(302, b"")), "malformed"),
    "no JSON": (sound(ROOTS, GetAppKey=(200, b"{")), "malformed"),
    "twice the same member": (sound(ROOTS, GetAppKey=(200, b'{"a":1,"a":1}')), "malformed"),
    "array": (sound(ROOTS, GetAppKey=(200, b"[]")), "malformed"),
    "no members": (sound(ROOTS, GetAppKey=(200, b"{}")), "malformed"),
    "too large": (sound(ROOTS, GetAppKey=(200, b" " * ((1 << 20) + 1))), "malformed"),
    "no hex": (with_keys(disk_crypt_key="x"), "malformed"),
    "number": (with_keys(disk_crypt_key=1), "malformed"),
    "empty disk key": (with_keys(disk_crypt_key=""), "wrong_size"),
    "short environment key": (with_keys(env_crypt_key="11" * 31), "wrong_size"),
    "long root key": (with_keys(k256_key="11" * 33), "wrong_size"),
    "short signature": (with_keys(k256_signature="11" * 64), "wrong_size"),
    "short image hash": (with_keys(os_image_hash="11"), "wrong_size"),
    "no scalar": (with_keys(k256_key="00" * 32), "invalid_key"),
    "other root key": (with_keys(k256_key="11" * 32), "bad_signature"),
    "malformed signature": (with_keys(k256_signature="ff" * 65), "bad_signature"),
    "keys of another app": (
        sound(ROOTS, GetAppKey=keys_of(ROOTS, bytes(20))),
        "bad_signature",
    ),
    "keys of another KMS": (
        sound(ROOTS, GetAppKey=keys_of(OTHER, ca_cert=issue_root(ROOTS, WINDOW))),
        "bad_signature",
    ),
    "other root certificate": (with_keys(ca_cert=issue_root(OTHER, WINDOW)), "wrong_root"),
    "no root certificate": (with_keys(ca_cert="x"), "malformed"),
    "other image": (with_keys(os_image_hash="cc" * 32), "wrong_image"),
    "no image": (with_keys(os_image_hash=""), "wrong_image"),
}


@every_case("name", REFUSED)
def test_answer_that_fails_a_check_is_refused(name: str) -> None:
    """Each wrong answer to GetAppKey is refused for its reason, without a byte of a key."""
    respond, reason = REFUSED[name]
    with running(ROOTS, respond) as server, raises(KmsError, reason) as caught:
        client_of(server).get_app_keys()
    assert caught.value.url == f"{server.url}/prpc"
    assert caught.value.url in str(caught.value)
    check_no_secret(caught.value)


def check_no_secret(error: BaseException | None) -> None:
    """Check that neither the error nor its causes contain a key of the answers."""
    keys = [keys_of(ROOTS), keys_of(OTHER), keys_of(ROOTS, bytes(20))]
    secrets = [found[name] for found in keys for name in found if name.endswith("crypt_key")]
    secrets += [found["k256_key"] for found in keys]
    while error is not None:
        text = f"{error!r} {vars(error)}"
        assert not any(secret[:12] in text for secret in secrets)
        error = error.__cause__ or error.__context__


PINNED: dict[str, tuple[Any, str]] = {
    "other KMS": (sound(ROOTS, GetTempCaCert=temp_ca_of(OTHER)), "wrong_root"),
    "two roots": (
        sound(
            ROOTS,
            GetTempCaCert=temp_ca_of(
                ROOTS, ca_cert=issue_root(ROOTS, WINDOW) + issue_root(OTHER, WINDOW)
            ),
        ),
        "malformed",
    ),
    "no root": (sound(ROOTS, GetTempCaCert=temp_ca_of(ROOTS, ca_cert="")), "malformed"),
    "key of another CA": (
        sound(
            ROOTS,
            GetTempCaCert=temp_ca_of(ROOTS, temp_ca_key=OTHER.ca_key.pkcs8_pem),
        ),
        "wrong_certificate",
    ),
    "no key": (sound(ROOTS, GetTempCaCert=temp_ca_of(ROOTS, temp_ca_key="SECRET")), "malformed"),
    "expired": (
        sound(
            ROOTS,
            GetTempCaCert=temp_ca_of(
                ROOTS, temp_ca_cert=issue_temp_ca(ROOTS, ValidityPeriod(0, 1))
            ),
        ),
        "expired",
    ),
    "denied": (sound(ROOTS, GetTempCaCert=(400, b'{"error":"no"}')), "refused"),
    "missing": (sound(ROOTS, GetTempCaCert={}), "malformed"),
}


@every_case("name", PINNED)
def test_wrong_root_or_temporary_ca_ends_before_keys_are_requested(name: str) -> None:
    """The root is compared, and the temporary CA checked, before anything else is sent."""
    respond, reason = PINNED[name]
    with running(ROOTS, respond) as server, raises(KmsError, reason) as caught:
        client_of(server).get_app_keys()
    assert [request.method for request in server.requests] == ["GetTempCaCert"]
    assert "SECRET" not in f"{caught.value!r}{caught.value.__cause__!r}"


SERVERS: dict[str, tuple[dict[str, Any], str]] = {
    "of another root": ({"issued_by": OTHER}, "wrong_certificate"),
    "of an app": ({"usage": b"app:custom"}, "wrong_usage"),
    "without usage": ({"usage": None}, "wrong_usage"),
    "of another host": ({"domain": "kms.example.com"}, "wrong_certificate"),
    "expired": ({"window": ValidityPeriod(0, 1)}, "expired"),
}


@every_case("name", SERVERS)
def test_server_certificate_that_is_not_of_this_kms_is_refused(name: str) -> None:
    """The server must be this KMS itself, not one of its apps, before keys are requested."""
    certificate, reason = SERVERS[name]
    with running(ROOTS, sound(ROOTS), **certificate) as server, raises(KmsError, reason):
        client_of(server).get_app_keys()
    assert [request.method for request in server.requests] == ["GetTempCaCert"]


def kms_evidence(events: Any = intel.BOOT) -> bytes:
    """Return the evidence of the server's key, for its certificate."""
    bound = ReportData.bind(ReportData.RATLS_CERT, ROOTS.rpc_key.spki_der)
    return intel.evidence(events, report_data=bound).stripped().to_bytes()


def test_evidence_of_the_kms_is_verified_if_a_verifier_is_given() -> None:
    """With a verifier the evidence is verified, and its result is returned."""
    with running(ROOTS, sound(ROOTS), evidence=kms_evidence()) as server:
        found = client_of(server, verifier=intel.verifier()).fetch_app_keys()
    assert found.evidence is not None
    assert found.evidence.app_info is not None
    assert found.evidence.app_info.app_id == intel.APP_ID


@every_case(
    ("evidence", "reason"),
    [
        (None, "no_evidence"),
        (b"\xef\xef\xef", "evidence_refused"),
        (intel.evidence().to_bytes(), "evidence_refused"),
        (kms_evidence(), "evidence_refused"),
    ],
    ids=["none", "garbage", "unbound", "policy"],
)
def test_missing_or_other_evidence_of_the_kms_is_refused(
    evidence: bytes | None, reason: str
) -> None:
    """Missing, malformed, unbound and unwanted evidence end before keys are requested."""
    verifier = intel.verifier(policy=AppraisalPolicy.default().replace(app_id={bytes(20)}))
    with running(ROOTS, sound(ROOTS), evidence=evidence) as server, raises(KmsError, reason):
        client_of(server, verifier=verifier).get_app_keys()
    assert [request.method for request in server.requests] == ["GetTempCaCert"]


def test_several_pins_and_unknown_k256_key() -> None:
    """Any pinned root is accepted; a CA alone leaves the k256 key unproven."""
    with running(ROOTS, sound(ROOTS)) as server:
        several = client_of(server, roots=[root_of(OTHER), ROOT]).fetch_app_keys()
        alone = client_of(server, roots=[KmsRoot(ROOT.ca_spki)]).fetch_app_keys()
        with raises(KmsError, "bad_signature"):
            other = KmsRoot(ROOT.ca_spki, K256Key(b"\5" * 32).public_key)
            client_of(server, roots=[other]).fetch_app_keys()
    assert (several.root, several.not_proven) == (ROOT, ())
    assert (alone.root, alone.not_proven) == (ROOT, ("kms_k256_root",))


def test_first_use_is_explicit_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    """Trust on first use has to be written, logs a warning once, and is not proven."""
    with running(ROOTS, sound(ROOTS)) as server:
        with caplog.at_level(logging.WARNING, "attestkit.kms"):
            client = client_of(server, roots="first-use")
            found = client.fetch_app_keys()
            client.fetch_app_keys()
        with raises(UsageError, "missing"):
            client_of(server, roots=[])
    assert len(caplog.records) == 1
    assert found.root == ROOT
    assert found.not_proven == ("kms_root", "kms_k256_root")


def test_urls_are_tried_in_order_and_all_failures_reported() -> None:
    """The next URL is tried after any failure; without success the error names every URL."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = f"https://127.0.0.1:{unused.getsockname()[1]}"
    denied = sound(ROOTS, GetAppKey=(400, b'{"error":"Boot denied: revoked"}'))
    with running(ROOTS, denied) as first, running(ROOTS, sound(ROOTS)) as second:
        guest = Guest()
        urls = [closed, first.url, second.url]
        found = client_of(first, urls=urls, attester=guest).fetch_app_keys()
        assert found.url == f"{second.url}/prpc"
        assert len(guest.requests) == 1
        with raises(KmsError, "refused", part="Boot denied: revoked") as caught:
            client_of(first, urls=urls[:2]).fetch_app_keys()
    failures = caught.value.failures
    assert [one.reason for one in failures] == ["connection", "refused"]
    assert [one.url for one in failures] == [f"{closed}/prpc", f"{first.url}/prpc"]
    assert str(failures[0]).endswith("Connection refused; check the URL, and that the KMS runs")
    assert all(one.url in str(caught.value) for one in failures)


def test_next_url_is_used_if_a_temporary_ca_has_the_year_zero() -> None:
    """A date that Python cannot express is a malformed answer, as any other."""
    late = issue_temp_ca(ROOTS, ValidityPeriod(2_524_608_000, 2_524_608_001))
    der = split_pem(late)[0].replace(b"20500101000000Z", b"00000101000000Z")
    broken = sound(ROOTS, GetTempCaCert=temp_ca_of(ROOTS, temp_ca_cert=certificate_pem(der)))
    with running(ROOTS, broken) as first, running(ROOTS, sound(ROOTS)) as second:
        found = client_of(first, urls=[first.url, second.url]).fetch_app_keys()
        assert found.url == f"{second.url}/prpc"
        with raises(KmsError, "malformed"):
            client_of(first).fetch_app_keys()
    assert [one.method for one in first.requests] == ["GetTempCaCert"] * 2


def test_other_app_id_than_in_the_evidence_is_refused() -> None:
    """Evidence of another app, or without one, is refused before anything is sent."""
    with running(ROOTS, sound(ROOTS)) as server:
        with raises(KmsError, "wrong_identity"):
            client_of(server, app_id=bytes(20)).get_app_keys()
        with raises(KmsError, "wrong_identity"):
            client_of(server, attester=Guest(BOOT[:1])).get_app_keys()
    assert not server.requests


def closes(sock: ssl.SSLSocket) -> None:
    """Close without an answer."""


def truncates(sock: ssl.SSLSocket) -> None:
    """Send a half of the body."""
    body = json.dumps(keys_of(ROOTS)).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body[: len(body) // 2])


def garbles(sock: ssl.SSLSocket) -> None:
    """Send what is not HTTP."""
    sock.sendall(b"SSH-2.0-x\r\n\r\n")


def encodes(sock: ssl.SSLSocket) -> None:
    """Send an encoding that was not requested."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")


def floods(sock: ssl.SSLSocket) -> None:
    """Send an endless head."""
    sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"".join(b"a%d: b\r\n" % at for at in range(20_000)))


@every_case(
    ("talk", "reason"),
    [
        (closes, "connection"),
        (truncates, "connection"),
        (garbles, "malformed"),
        (encodes, "malformed"),
        (floods, "malformed"),
    ],
)
def test_broken_answer_is_not_used(talk: Any, reason: str) -> None:
    """A closed connection, a part of an answer, and what is not HTTP are failures."""
    respond = sound(ROOTS, GetAppKey=talk)
    with running(ROOTS, respond) as server, raises(KmsError, reason) as caught:
        client_of(server).get_app_keys()
    check_no_secret(caught.value)


def test_slow_kms_times_out_and_the_next_url_is_used() -> None:
    """A KMS that sends single bytes does not hold the client beyond its limit."""
    done = threading.Event()

    def drips(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not done.wait(0.05):
            sock.sendall(b" ")

    with (
        running(ROOTS, sound(ROOTS, GetAppKey=drips)) as slow,
        running(ROOTS, sound(ROOTS)) as server,
    ):
        limits = TimeLimits(connect=1.0, call=0.5)
        with raises(KmsError, "timeout"):
            client_of(slow, limits=limits).get_app_keys()
        found = client_of(slow, urls=[slow.url, server.url], limits=limits).fetch_app_keys()
        assert found.url == f"{server.url}/prpc"
        done.set()


def test_meta_is_compared_with_the_pins() -> None:
    """The root keys in GetMeta must be the pinned ones."""
    meta = {
        "ca_cert": issue_root(ROOTS, WINDOW),
        "k256_pubkey": ROOTS.k256_key.public_key.hex(),
        "allow_any_upgrade": True,
        "is_dev": True,
        "bootstrap_info": None,
        "gateway_app_id": "any",
        "kms_contract_address": None,
        "chain_id": None,
        "app_auth_implementation": None,
        "later": [1],
    }
    with running(ROOTS, sound(ROOTS, GetMeta=meta)) as server:
        found = client_of(server, attester=None).get_meta()
    assert (found.is_dev, found.gateway_app_id, found.chain_id) == (True, "any", None)
    for change in (
        {"ca_cert": issue_root(OTHER, WINDOW)},
        {"k256_pubkey": OTHER.k256_key.public_key.hex()},
    ):
        with (
            running(ROOTS, sound(ROOTS, GetMeta=meta | change)) as server,
            raises(KmsError, "wrong_root"),
        ):
            client_of(server).get_meta()


NOW = 1_790_000_000


def env_answer(**changes: Any) -> dict[str, Any]:
    """Return the answer to GetAppEnvEncryptPubKey."""
    found = sign_env_public_key(ROOTS, APP_ID, NOW)
    return {
        "public_key": found.public_key.hex(),
        "signature": found.signature.hex(),
        "timestamp": found.timestamp,
        "signature_v1": found.signature_v1.hex(),
        **changes,
    }


def test_env_public_key_is_verified_with_the_pin() -> None:
    """Key, app and time must be signed by the pinned key; the legacy signature is not enough."""
    answer = env_answer()
    with running(ROOTS, sound(ROOTS, GetAppEnvEncryptPubKey=answer)) as server:
        client = client_of(server, attester=None, now=lambda: NOW + 300)
        assert client.env_public_key(APP_ID).hex() == answer["public_key"]
        with raises(KmsError, "bad_signature"):
            client.env_public_key(bytes(20))
        for now in (NOW + 301, NOW - 61):
            with raises(KmsError, "bad_signature"):
                client_of(server, now=lambda now=now: now).env_public_key(APP_ID)
        with raises(UsageError, "missing"):
            client_of(server, roots=[KmsRoot(ROOT.ca_spki)]).env_public_key(APP_ID)
        with raises(UsageError, "wrong_size"):
            client.env_public_key(b"")
    for change, reason in (
        ({"signature_v1": ""}, "bad_signature"),
        ({"timestamp": NOW - 1}, "bad_signature"),
        ({"timestamp": -1}, "malformed"),
        ({"public_key": "00" * 31}, "wrong_size"),
    ):
        respond = sound(ROOTS, GetAppEnvEncryptPubKey=env_answer(**change))
        with running(ROOTS, respond) as server, raises(KmsError, reason):
            client_of(server, now=lambda: NOW).env_public_key(APP_ID)


@every_case(
    ("changes", "kind", "reason"),
    [
        ({"urls": []}, KmsError, "no_urls"),
        ({"urls": ["https://a"] * (MAX_URLS + 1)}, UsageError, "too_many"),
        ({"urls": "http://a"}, ConfigError, "wrong_value"),
        ({"roots": "any"}, UsageError, "wrong_type"),
        ({"app_id": b""}, UsageError, "wrong_size"),
        ({"verifier": 1}, UsageError, "wrong_type"),
        ({"urls": None}, UsageError, "wrong_type"),
        ({"urls": b"https://a"}, UsageError, "wrong_type"),
        ({"urls": [b"https://a"]}, UsageError, "wrong_type"),
        ({"vm_config": b"{}"}, UsageError, "wrong_type"),
        ({"limits": 5}, UsageError, "wrong_type"),
    ],
)
def test_invalid_argument_is_refused(changes: dict[str, Any], kind: Any, reason: str) -> None:
    """URLs, roots and other arguments are checked before anything is sent."""
    fields: dict[str, Any] = {"urls": "https://a", "roots": [ROOT], **changes}
    with raises(kind, reason):
        KmsClient(fields.pop("urls"), **fields)


def test_keys_are_released_to_evidence_only() -> None:
    """Without an attester the client cannot request keys."""
    client = KmsClient("https://a", roots=[ROOT])
    with raises(UsageError, "missing"):
        client.get_app_keys()
    assert repr(client) == "KmsClient(['https://a/prpc'])"
    with raises(UsageError, "encoding"):
        untyped(KmsClient)("https://a", roots=[ROOT], attester=Guest(), vm_config="\ud800")
