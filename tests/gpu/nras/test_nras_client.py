"""Requests to NVIDIA's service have its form, and its answers are bounded and read."""

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import pytest

from attestkit.collateral.responses import Response
from attestkit.errors import CollateralError, UsageError
from attestkit.gpu.evidence import DeviceEvidence
from attestkit.gpu.nras.client import NVIDIA_NRAS_URL, fetch_keys, request_tokens
from attestkit.gpu.nras.detached_eat import MAX_BUNDLE
from attestkit.gpu.nras.tokens import MAX_JWKS
from tests.gpu.nras.nras_tokens import NONCE, answer, jwks
from tests.pki.ocsp_pki import der, issuer_certificate, subject_certificate
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

DEVICE = DeviceEvidence(
    "HOPPER", b"report", (der(subject_certificate()), der(issuer_certificate())), NONCE
)


class Service:
    """A service with one answer, which records requests."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        self.response = Response(status, {}, body)
        self.url = ""
        self.body = b""
        self.headers: Mapping[str, str] = {}

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Response:
        """Answer a POST."""
        self.url, self.body, self.headers = url, body, headers
        return self.response

    def get(self, url: str) -> Response:
        """Answer a GET."""
        self.url = url
        return self.response


@pytest.mark.parametrize("version", [2, 3, 4])
def test_request_tokens_has_form_of_the_service(version: Any) -> None:
    """URL, JSON and header fields are those of the service."""
    service = Service(answer())
    found = request_tokens([DEVICE] * 2, "BLACKWELL", NONCE, service.post, version=version)
    assert found == service.response.body
    assert service.url == f"{NVIDIA_NRAS_URL}/v{version}/attest/gpu"
    assert service.headers == {"Accept": "application/json", "Content-Type": "application/json"}
    entry = {
        "certificate": base64.b64encode(DEVICE.chain_pem).decode(),
        "evidence": base64.b64encode(b"report").decode(),
    }
    assert json.loads(service.body) == {
        "nonce": NONCE.hex(),
        "arch": "BLACKWELL",
        "evidence_list": [entry, entry],
        "claims_version": "3.0",
    }


def test_request_tokens_options() -> None:
    """Switches have a path of their own; key and hold are header fields."""
    service = Service(answer())
    request_tokens(
        *([DEVICE], "LS10", NONCE, service.post, "https://nras.example/"),
        claims_version=None,
        service_key="secret key",
        allow_hold=True,
    )
    assert service.url == "https://nras.example/v3/attest/switch"
    assert "claims_version" not in json.loads(service.body)
    assert service.headers["Authorization"] == "Bearer secret key"
    assert service.headers["X-NVIDIA-OCSP-ALLOW-CERT-HOLD"] == "true"


WRONG_URLS: Final = (
    "http://127.0.0.1:x@evil.example/",
    "http://127.0.0.1:80@evil.example/",
    "http://[::1]:80@evil.example/",
    "http://localhost:8000",
    "http://127.0.0.1.evil.example:80",
    "http://127.0.0.1:port",
    "http://127.0.0.2:80",
    "http://[::1",
    "http://[::2]:80",
    "https://user:password@nras.example",
    "https://nras.example\\@evil.example",
    "https://nras.example/?a",
    "https://nras.example#a",
    "https://nras.example\n.evil.example",
    "https://nras.éxample",
    "https://",
    "https:///v3",
    "nras.example",
    "",
)


@every_case(
    ("arguments", "reason"),
    [
        ({"devices": []}, "missing"),
        ({"devices": [DEVICE] * 65}, "too_many"),
        ({"architecture": "hopper"}, "wrong_value"),
        ({"nonce": b"1"}, "wrong_size"),
        ({"version": 1}, "wrong_value"),
        ({"claims_version": "1.0"}, "wrong_value"),
        ({"url": "http://nras.attestation.nvidia.com"}, "wrong_value"),
        ({"url": "file:///etc/passwd"}, "wrong_value"),
        *(({"url": url}, "wrong_value") for url in WRONG_URLS),
        ({"url": b"https://nras.example"}, "wrong_type"),
        ({"url": None}, "wrong_type"),
        ({"service_key": "a\r\nb: c"}, "encoding"),
        ({"service_key": ""}, "encoding"),
    ],
)
def test_request_tokens_with_wrong_argument_raises_usage_error(
    arguments: dict[str, Any], reason: str
) -> None:
    """Arguments are checked before anything is sent."""
    service = Service(answer())
    given = {"devices": [DEVICE], "architecture": "HOPPER", "nonce": NONCE} | arguments
    with raises(UsageError, reason):
        untyped(request_tokens)(poster=service.post, **given)
    assert not service.url


@every_case(
    ("status", "body", "reason", "part"),
    [
        (400, b'{"errorMessage": "wrong\\nnonce"}', "fetch_failed", "status 400: wrong nonce"),
        (401, b"", "fetch_failed", "key"),
        (302, b"", "fetch_failed", "status 302"),
        (500, b"\xff", "fetch_failed", "status 500"),
        (200, b"", "malformed", "JSON"),
        (200, b'[["JWT","a"],{}]', "malformed", "must have a device"),
        (200, bytes(MAX_BUNDLE + 1), "too_large", "at most"),
    ],
)
def test_request_tokens_with_bad_answer_raises_collateral_error(
    status: int, body: bytes, reason: str, part: str
) -> None:
    """An answer that is an error, malformed or too large is refused."""
    service = Service(body, status)
    with raises(CollateralError, reason, part=part, start=f"NRAS {NVIDIA_NRAS_URL}/v3"):
        request_tokens([DEVICE], "HOPPER", NONCE, service.post)


def test_fetch_keys() -> None:
    """Keys are fetched from their well-known place over TLS, read and returned as they are."""
    service = Service(jwks())
    assert fetch_keys(service.get) == jwks()
    assert service.url == f"{NVIDIA_NRAS_URL}/.well-known/jwks.json"
    for url in ("http://127.0.0.1:8080", "http://[::1]:8080/", "HTTPS://nras.example/mirror/"):
        assert fetch_keys(service.get, url) == jwks()
        assert service.url == f"{url.rstrip('/')}/.well-known/jwks.json"
    for url in ("http://nras.example", "http://127.0.0.1:x@evil.example/"):
        with raises(UsageError, "wrong_value"):
            fetch_keys(service.get, url)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b"", "fetch_failed"),
        (200, b'{"keys":[]}', "malformed"),
        (200, bytes(MAX_JWKS + 1), "too_large"),
    ],
)
def test_fetch_keys_with_bad_answer_raises_collateral_error(
    status: int, body: bytes, reason: str
) -> None:
    """Keys that are malformed or too many are refused."""
    with raises(CollateralError, reason):
        fetch_keys(Service(body, status).get)
