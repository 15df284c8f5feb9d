"""Targets: what a KMS and its clients read."""

import json
from collections.abc import Callable
from typing import Any, Final

from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, issue_leaf
from attestkit.attestation import Attestation
from attestkit.errors import (
    ConfigError,
    FormatError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.kms.answers import (
    KmsMeta,
    ReceivedKeys,
    SignedEnvKey,
    read_certificate_chain,
    read_refusal,
)
from attestkit.kms.cert_request import (
    CertRequest,
    decode_cert_request,
    sign_cert_request,
    verify_cert_request,
)
from attestkit.kms.https_call import ClientCa
from attestkit.kms.root import KmsRoot
from attestkit.kms.tls_chain import AppCertificate, verify_app_certificate
from attestkit.kms.url import KmsUrl, kms_base_url, parse_kms_url
from attestkit.ra_tls import OID_APP_ID, OID_ATTESTATION, OID_CERT_USAGE
from attestkit.report_data import ReportData
from attestkit.serve.kms_service.client_evidence import ClientEvidence, read_client_evidence
from attestkit.serve.kms_service.errors import KmsRefusalError
from attestkit.serve.kms_service.onboarding import read_roots
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from fuzz.parsers.serve.settings import secrets
from tests.samples.quotes import made_quote

_ONE: Final = bytes(31) + b"\1"
_KEY: Final = P256Key.from_scalar(_ONE)
_SPKI: Final = _KEY.spki_der
_APP_ID: Final = b"\xab" * 20
_NOW: Final = 1_790_000_000


def _root(_raw: bytes, found: KmsRoot) -> None:
    check_same("written and read again", KmsRoot.from_json(found.to_json()), found)


def root_samples() -> list[bytes]:
    """Return pins with one key and with both."""
    both = KmsRoot(_SPKI, K256Key(_ONE).public_key)
    return [both.to_json().encode(), KmsRoot(_SPKI).to_json().encode()]


def _url(raw: bytes) -> KmsUrl:
    return parse_kms_url(raw.decode("latin-1"))


def _url_parts(_raw: bytes, found: KmsUrl) -> None:
    check("an https URL", found.base.startswith("https://") and found.base.endswith(found.path))
    check("a port", 0 < found.port < 1 << 16)
    check_same("the base of the base", kms_base_url(found.base), found.base)


def url_samples() -> list[bytes]:
    """Return URLs of every form."""
    return [b"https://kms.example.com:8000/a/prpc/", b"https://[::1]", b"https://a/?b", b"x://a@b"]


def _chain(raw: bytes) -> AppCertificate:
    return verify_app_certificate(
        raw.decode("latin-1"), app_id=_APP_ID, kms_roots=[KmsRoot(_SPKI)], now=_NOW
    )


def chain_samples() -> list[bytes]:
    """Return a chain that leads to the pinned root."""
    window: dict[str, Any] = {"not_before": 0, "not_after": _NOW + 1}
    root = certificate_pem(issue_ca(key=_KEY, subject="r", path_length=1, **window))
    app_ca = certificate_pem(
        issue_ca(
            key=_KEY,
            subject="a",
            path_length=0,
            extensions=[(OID_APP_ID, _APP_ID), (OID_CERT_USAGE, b"app:ca")],
            issuer=(root, _KEY),
            **window,
        )
    )
    leaf = issue_leaf(
        public_key=_KEY,
        subject="l",
        extensions=[(OID_APP_ID, _APP_ID), (OID_CERT_USAGE, b"app:custom")],
        ca_cert=app_ca,
        ca_key=_KEY,
        **window,
    )
    pem = certificate_pem(leaf)
    return [(pem + app_ca + root).encode(), (root + app_ca + pem).encode(), pem.encode()]


def _request(raw: bytes) -> CertRequest:
    """Decode a request; the first byte is the version."""
    return decode_cert_request(raw[1:], raw[0] if raw else 0)


def _request_parts(raw: bytes, found: CertRequest) -> None:
    if found.evidence is None:
        tried(found.attested, None, FormatError)
    verified = tried(
        lambda: verify_cert_request(raw[1:], b"", raw[0]), None, FormatError, SignatureError
    )
    check("no signature", not verified)


def request_samples() -> list[bytes]:
    """Return requests of both versions."""
    evidence = Attestation.from_quote_and_log(made_quote(auth=b""), "[]")
    names = CertRequest(_SPKI, "a", evidence, "b", ("c",), not_after=1)
    encoded, _ = sign_cert_request(names, _KEY)
    plain = CertRequest(b"", "", evidence).to_bytes()
    head = plain[: -len(evidence.to_bytes())]
    return [b"\2" + encoded, b"\2" + plain, b"\1" + head[:-3] + b"\4q\x08[]"]


def _client(raw: bytes) -> ClientEvidence | None:
    return read_client_evidence(raw.decode("latin-1"))


def client_samples() -> list[bytes]:
    """Return certificates of clients with evidence of their key, of another one, and without."""
    window: dict[str, Any] = {"not_before": 0, "not_after": _NOW + 1}
    ca = certificate_pem(issue_ca(key=_KEY, subject="r", path_length=0, **window))
    bound = ReportData.bind(ReportData.RATLS_CERT, _SPKI)
    quote = made_quote(auth=b"")
    evidence = Attestation.from_quote_and_log(quote, "[]")
    found = []
    for one in (evidence.with_report_data(bound).to_bytes(), evidence.to_bytes(), b"\xef", None):
        extensions = [] if one is None else [(OID_ATTESTATION, one)]
        leaf = issue_leaf(
            public_key=_KEY, subject="l", extensions=extensions, ca_cert=ca, ca_key=_KEY, **window
        )
        found.append(certificate_pem(leaf).encode())
    return found


def _source(raw: bytes) -> tuple[bytes, bytes]:
    """Read the roots of another KMS; return their public keys."""
    found = read_roots(raw, _SPKI, _KEY)
    return found.ca_spki, found.k256_public_key


def _source_roots(_raw: bytes, found: tuple[bytes, bytes]) -> None:
    check_same("the root that the source has shown", found[0], _SPKI)
    check("a secp256k1 key", len(found[1]) == 33)


def source_samples() -> list[bytes]:
    """Return answers to GetKmsKey."""
    entry = {"ca_key": _KEY.pkcs8_pem, "k256_key": _ONE.hex()}
    keys: list[object] = [[entry], [entry, entry], [], None]
    return [json.dumps({"temp_ca_key": _KEY.pkcs8_pem, "keys": one}).encode() for one in keys]


_ANSWERS: Final[tuple[Callable[[bytes], object], ...]] = (
    KmsMeta.from_json,
    ClientCa.from_json,
    ReceivedKeys.from_json,
    SignedEnvKey.from_json,
    read_certificate_chain,
)


def _answer(raw: bytes) -> object:
    """Read an answer; the first byte says of which method."""
    text = read_refusal(raw[1:])
    check("a short line", len(text) <= 300 and text.isprintable())
    return _ANSWERS[raw[0] % len(_ANSWERS)](raw[1:]) if raw else None


def answer_samples() -> list[bytes]:
    """Return answers to every method, with marked keys, and refusals in both encodings."""
    marked = "5ec2e7" * 10 + "5ec2"
    meta = {
        "ca_cert": "",
        "k256_pubkey": "02",
        "allow_any_upgrade": True,
        "is_dev": False,
        "bootstrap_info": {"ca_pubkey": "00", "k256_pubkey": "00", "attestation": ""},
        "gateway_app_id": "any",
        "kms_contract_address": None,
        "chain_id": 1,
        "app_auth_implementation": None,
    }
    keys = dict.fromkeys(("disk_crypt_key", "env_crypt_key", "k256_key"), marked)
    window: dict[str, Any] = {"not_before": 0, "not_after": _NOW + 1}
    ca = certificate_pem(issue_ca(key=_KEY, subject="r", path_length=0, **window))
    answers: list[object] = [
        meta,
        {"temp_ca_cert": "", "temp_ca_key": "SECRETabcdef", "ca_cert": ""},
        {"ca_cert": "", **keys, "k256_signature": "00", "gateway_app_id": "any"},
        {"public_key": "00", "signature": "00", "timestamp": 1, "signature_v1": "00"},
        {"certificate_chain": ["a", "b", "c"]},
        {"error": "App not allowed: No attestation provided"},
    ]
    found = [bytes([at]) + json.dumps(one).encode() for at, one in enumerate(answers)]
    temp_ca = {"temp_ca_cert": ca, "temp_ca_key": _KEY.pkcs8_pem, "ca_cert": ca}
    return [*found, b"\1" + json.dumps(temp_ca).encode(), b"\0\n\x02no"]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    root = obeys(KmsRoot.from_json, ConfigError, accepted=_root)
    url = obeys(_url, ConfigError, accepted=_url_parts)
    chain = obeys(_chain, FormatError, SignatureError, VerificationError)
    # The text of a quote or event log of version 1, and offsets in it, come from other parsers.
    request = obeys(_request, FormatError, accepted=_request_parts)
    answer = obeys(_answer, FormatError, said=repr, secret=secrets)
    client = obeys(_client, KmsRefusalError)
    source = obeys(_source, FormatError, UsageError, accepted=_source_roots)
    return [
        ParserTarget("kms_client", client, short(client_samples), "x509.dict"),
        ParserTarget("kms_source", source, source_samples, "config.dict", 2048),
        ParserTarget("kms_answer", answer, answer_samples, "config.dict", 2048),
        ParserTarget("app_chain", chain, short(chain_samples), "x509.dict"),
        ParserTarget("cert_request", request, short(request_samples), "evidence.dict"),
        ParserTarget("kms_root", root, root_samples, "config.dict", 512),
        ParserTarget("kms_url", url, url_samples, "config.dict", 128),
    ]
