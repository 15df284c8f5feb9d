"""A client of dstack.guest.v1, written from a description of the official SDKs alone.

It has the paths, defaults, bodies and error handling of the DstackClient of the 0.6.0 SDKs, whose
packages are not available.
"""

import http.client
import json
import os
import socket
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

SOCKETS: Final = (
    *("/var/run/dstack.sock", "/run/dstack.sock"),
    *("/var/run/dstack/dstack.sock", "/run/dstack/dstack.sock"),
)
ENDPOINT: Final = "DSTACK_SIMULATOR_ENDPOINT"
NO_ALGORITHM: Final = "algorithm is required, use `secp256k1` or `ed25519`"
_LONGEST: Final = 300  # characters of an error
_HEADERS: Final = {"Content-Type": "application/json", "User-Agent": "dstack-sdk-python/0.6.0"}


class StatusError(Exception):
    """The agent answered with another status than 2xx."""

    def __init__(self, status: int, body: bytes) -> None:
        text = body.decode("utf-8", "replace")
        with suppress(ValueError, LookupError, TypeError):
            text = json.loads(text)["error"]
        super().__init__(f"HTTP {status}: {text[:_LONGEST]}")
        self.status = status


class Key(NamedTuple):
    """Response of GetKey; all fields are required."""

    key: bytes
    public_key: bytes
    signature_chain: list[bytes]


class Certificate(NamedTuple):
    """Response of IssueCert; all fields are required."""

    key: str
    certificate_chain: list[str]


class Evidence(NamedTuple):
    """Response of Attest."""

    attestation: bytes
    boottime_gpu_evidence: list[dict[str, str]]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class DstackClient:
    """The client; FileNotFoundError if the socket is missing."""

    def __init__(self, endpoint: str | None = None, *, timeout: float = 3) -> None:
        found = next(filter(os.path.exists, SOCKETS), SOCKETS[0])
        self.endpoint: str = endpoint or os.environ.get(ENDPOINT) or found
        self._timeout = timeout
        if not self._is_url and not os.path.exists(self.endpoint):  # noqa: PTH110
            raise FileNotFoundError(self.endpoint)

    @property
    def _is_url(self) -> bool:
        return self.endpoint.startswith(("http://", "https://"))

    def _request(self, verb: str, path: str, body: str | None) -> tuple[int, bytes]:
        base, connection = "", http.client.HTTPConnection("")
        if self._is_url:
            url = urlsplit(self.endpoint)
            base = url.path.rstrip("/")
            connection = http.client.HTTPConnection(url.netloc, timeout=self._timeout)
        else:
            connection = _UnixConnection(self.endpoint, self._timeout)
        with closing(connection):
            connection.request(verb, base + path, body, _HEADERS)
            response = connection.getresponse()
            return response.status, response.read()

    def _call(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        status, body = self._request("POST", f"/v1/{method}", json.dumps(arguments))
        if not 200 <= status < 300:
            raise StatusError(status, body)
        found: dict[str, Any] = json.loads(body)
        return found

    def is_v1(self) -> bool | None:
        """Return whether the agent has v1; None if it is not an agent of dstack."""
        status, body = self._request("GET", "/v1/Version", None)
        try:
            found = json.loads(body)
        except ValueError:
            return False
        if status == 200 and "version" in found:
            return True
        missing = status == 404 and str(found.get("error")).startswith("Service not found")
        return None if missing else False

    def issue_cert(
        self,
        subject: str = "",
        *,
        alt_names: list[str] | None = None,
        usage_ra_tls: bool = False,
        usage_server_auth: bool = True,
        usage_client_auth: bool = False,
        not_before: int | None = None,
        not_after: int | None = None,
        with_app_info: bool = False,
    ) -> Certificate:
        """Issue a certificate; a field that is not given is not sent."""
        arguments: dict[str, Any] = {
            "subject": subject,
            "usage_ra_tls": usage_ra_tls,
            "usage_server_auth": usage_server_auth,
            "usage_client_auth": usage_client_auth,
            "with_app_info": with_app_info,
        }
        if alt_names:
            arguments["alt_names"] = alt_names
        times = {"not_before": not_before, "not_after": not_after}
        arguments |= {name: value for name, value in times.items() if value is not None}
        found = self._call("IssueCert", arguments)
        return Certificate(found["key"], found["certificate_chain"])

    def get_key(self, domain: str, algorithm: str) -> Key:
        """Return a key; only an empty algorithm is refused locally."""
        if not algorithm:
            raise ValueError(NO_ALGORITHM)
        found = self._call("GetKey", {"domain": domain, "algorithm": algorithm})
        chain = [bytes.fromhex(link) for link in found["signature_chain"]]
        return Key(bytes.fromhex(found["key"]), bytes.fromhex(found["public_key"]), chain)

    def attest(
        self, report_data: bytes, *, include_boottime_gpu_evidence: bool = False
    ) -> Evidence:
        """Return evidence over 1 to 64 bytes."""
        if not 1 <= len(report_data) <= 64:
            raise ValueError("report data must have 1 to 64 bytes")
        arguments = {
            "report_data": report_data.hex(),
            "include_boottime_gpu_evidence": include_boottime_gpu_evidence,
        }
        found = self._call("Attest", arguments)
        bundles = found.get("boottime_gpu_evidence") or []
        return Evidence(bytes.fromhex(found["attestation"]), bundles)

    def attest_gpu(self, nonce: bytes) -> list[dict[str, str]]:
        """Return GPU evidence over 32 bytes."""
        if len(nonce) != 32:
            raise ValueError("nonce must have 32 bytes")
        bundles: list[dict[str, str]] = self._call("AttestGpu", {"nonce": nonce.hex()})["bundles"]
        return bundles

    def info(self) -> dict[str, str]:
        """Return the identity; six fields are required, and the others default to ""."""
        found = self._call("Info", {})
        required = ("app_id", "compose_hash", "instance_id", "device_id", "os_image_hash")
        optional = (
            *("app_name", "app_compose", "vm_config", "key_provider_info"),
            *("cloud_vendor", "cloud_product"),
        )
        return {name: found[name] for name in (*required, "mr_aggregated")} | {
            name: found.get(name, "") for name in optional
        }

    def version(self) -> tuple[str, str]:
        """Return version and revision."""
        found = self._call("Version", {})
        return found["version"], found["rev"]
