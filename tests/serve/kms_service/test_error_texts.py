"""Error texts of a simulated KMS: those that dstack's clients know."""

import json
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import pytest

from attestkit.kms import SimulatedKms
from attestkit.kms.release.authorization import Decision
from tests.serve.kms_service.kms_clients import anonymous, guest
from tests.vectors import load, needs_shared
from tests.verifier.platforms import intel

ROWS: list[dict[str, Any]] = load("kms.json").get("groups", {}).get("errors", {}).get("rows", [])
NOW = intel.NOW.timestamp()
TOKEN = "x" * 16

Answer = tuple[int, Any]


def _call(kms: SimulatedKms, method: str, message: dict[str, object]) -> Answer:
    answer = anonymous(kms).call(method, message)
    return answer.status, answer.json()


def _denied(kms: SimulatedKms) -> Answer:
    answer = guest(kms).call("GetAppKey", {"api_version": 1})
    return answer.status, answer.json()


def _clear_cache(kms: SimulatedKms) -> Answer:
    connection = HTTPConnection(kms.admin_url.removeprefix("http://"), timeout=60)
    try:
        body = json.dumps({"image_hash": "../x", "config_hash": ""})
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", "/prpc/Admin.ClearImageCache", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


REQUESTS: dict[str, Callable[[SimulatedKms], Answer]] = {
    "GetAppKey with api_version 2": lambda kms: _call(kms, "GetAppKey", {"api_version": 2}),
    "GetAppKey, authorisation said no with reason R": _denied,
    "GetAppEnvEncryptPubKey with 19 bytes": lambda kms: _call(
        kms, "GetAppEnvEncryptPubKey", {"app_id": "00" * 19}
    ),
    "SignCert with api_version 0": lambda kms: _call(
        kms, "SignCert", {"api_version": 0, "csr": "", "signature": ""}
    ),
    "ClearImageCache with image_hash ../x": _clear_cache,
}


@needs_shared
@pytest.mark.parametrize("case", REQUESTS)
def test_error_is_that_of_the_real_kms(case: str) -> None:
    """Status and text are those of the vector."""
    row = next(row for row in ROWS if row["case"] == case)
    with SimulatedKms(
        intel.verifier(),
        auth=lambda _guest: Decision(is_allowed=False, reason="R"),
        seed=bytes(32),
        now=lambda: NOW,
        image_verify=False,
        admin=("127.0.0.1", 0),
        admin_token=TOKEN,
    ) as kms:
        status, body = REQUESTS[case](kms)
    assert (status, body["error"]) == (row["status"], row["error"])
