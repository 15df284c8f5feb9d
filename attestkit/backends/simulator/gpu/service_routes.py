"""Routes of NVIDIA's services for simulated GPUs: OCSP responder, RIM service, NRAS.

`attestkit.serve` provides the sockets, beside the simulator's PCCS.
"""

from base64 import b64encode
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.backends.simulator.service_response import (
    JSON,
    ServiceResponse,
    content_response,
    json_response,
)

_RIM: Final = "/v1/rim/"
_IDS: Final = "ids"
_OCSP: Final = "/ocsp"
_JWKS: Final = "/.well-known/jwks.json"


class SimulatedGpuServices:
    """Routes of the services: `/ocsp`, `/v1/rim/<id>`, `/v<n>/attest/<kind>` and the key set.

    Args:
        gpus: The devices that the services endorse.
        now: Returns Unix time.
    """

    def __init__(self, gpus: SimulatedGpus, now: Callable[[], float]) -> None:
        self._gpus, self._now = gpus, now

    def get(self, path: str) -> ServiceResponse | None:
        """Return the response to a GET request; None if the path is not of these services."""
        if path.startswith(_RIM):
            return self._rim(path.removeprefix(_RIM))
        if path == _JWKS:
            return content_response(JSON, self._gpus.nras.jwks(self._moment()))
        return None

    def post(self, path: str, body: bytes) -> ServiceResponse | None:
        """Return the response to a POST request; None if the path is not of these services."""
        if path.rstrip("/") == _OCSP:
            status = self._gpus.ocsp.respond(body, self._moment())
            return content_response("application/ocsp-response", status)
        answer = self._gpus.nras.attest(path, body, self._moment())
        return None if answer.status == 404 else answer

    def _rim(self, identifier: str) -> ServiceResponse:
        rims = self._gpus.rims
        if identifier == _IDS:
            return json_response({"ids": sorted(rims)})
        rim = rims.get(identifier)
        if rim is None:
            return json_response({"message": "RIM not found", "id": identifier[:256]}, 404)
        body = {
            "id": identifier,
            "rim": b64encode(rim).decode("ascii"),
            "sha256": sha256(rim).hex(),
            "last_updated": "2024-01-01T00:00:00Z",
            "rim_format": "TCG",
            "request_id": sha256(identifier.encode()).hex()[:32],
        }
        return json_response(body)

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(int(self._now()), timezone.utc)
