"""The service Worker of v1 on the external listener: Health."""

import json
from typing import Any, Final

import pytest

from attestkit.serve.health.monitor import HealthMonitor, HealthProblem, HealthVerdict
from tests.serve.asgi import BINARY_TYPE
from tests.serve.guests import Broken, GuestClient, MakeGuest
from tests.vectors import load, needs_shared

HEALTH: Final = [
    case for case in load("guest_v1.json").get("wire", []) if case["message"] == "HealthResponse"
]


@needs_shared
@pytest.mark.parametrize("case", HEALTH, ids=lambda case: str(case["name"]))
def test_health_returns_last_verdict(
    make_guest: MakeGuest, guest_client: GuestClient, case: dict[str, Any]
) -> None:
    """The last verdict is returned as in the vectors; nothing is determined for a request."""
    want = json.loads(case["json"])
    entries = tuple(HealthProblem(**entry) for entry in want["unhealthy"])

    async def check() -> HealthVerdict:
        pytest.fail("checked for a request")

    guest = make_guest(Broken)
    guest.health_monitor = HealthMonitor(check)
    guest.health_monitor.verdict = HealthVerdict(want["healthy"], entries, want["error"])
    client = guest_client("external", guest)
    for verb in ("GET", "POST"):
        response = client.request(verb, "/prpc/v1/Health")
        if verb == "POST":  # protobuf
            assert (response.status, response.body.hex()) == (200, case["protobuf"])
        else:
            assert (response.status, response.body) == (200, case["json"].encode())
    binary = client.request("POST", "/prpc/v1/Health", b"", {"content-type": BINARY_TYPE})
    assert binary.body.hex() == case["protobuf"]


def test_health_before_first_check(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """An app that requires health checks is unhealthy before the first one."""
    compose = {"manifest_version": "3", "requirements": {"health_check": True}}
    guest = make_guest(compose=compose | {"runner": "docker-compose"})
    found = guest_client("external", guest).get("/prpc/v1/Health").json()
    assert found == {
        "healthy": False,
        "unhealthy": [{"name": "<health>", "status": "health has not been determined yet"}],
        "error": "",
    }
