"""The Worker service on the external listener: app info and evidence for its keys only."""

import json
from typing import Any

import pytest

from attestkit.event_log import EventLog
from attestkit.quote import Quote
from tests.serve.asgi import Client
from tests.serve.guests import Counting, GuestClient, MakeGuest, vector_keys
from tests.vectors import load, needs_shared

APP_KEY = load("app_key_attestation.json")


def test_worker_info_equals_agent_info(dstack: Client, external: Client) -> None:
    """By default Info is the same on both listeners."""
    for path in ("/prpc/Info", "/prpc/Worker.Info"):
        assert external.get(path).body == dstack.get("/Info").body


def test_worker_info_hides_measurements(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """With public_tcbinfo false the measurements are hidden on the external listener only."""
    guest = make_guest(compose={"public_tcbinfo": False})
    inside = guest_client("dstack", guest).get("/Info").json()
    outside = guest_client("external", guest).post("/prpc/Worker.Info").json()
    assert (outside["tcb_info"], outside["vm_config"]) == ("", "")
    assert inside["tcb_info"] != "" != inside["vm_config"]
    assert {**outside, "tcb_info": "", "vm_config": ""} == {
        **inside,
        "tcb_info": "",
        "vm_config": "",
    }
    assert guest_client("tappd", guest).get("/prpc/Info").json() == inside


def test_responses_have_app_version(guest_client: GuestClient) -> None:
    """X-App-Version is in every response, including errors and pages."""
    client = guest_client("external")
    for path in ("/prpc/Worker.Version", "/nope", "/", "/prpc/Nope"):
        assert client.get(path).headers["x-app-version"] == "v0.5.11 (unknown)"
    assert client.get("/prpc/Version").json() == {"version": "0.5.11", "rev": "unknown"}


@needs_shared
@pytest.mark.parametrize("case", APP_KEY.get("cases", []), ids=str)
def test_app_key_attestation_matches_vectors(
    guest_client: GuestClient, case: dict[str, Any]
) -> None:
    """The quoted report data equals the vectors."""
    client = guest_client("external", app_keys=vector_keys(k256_key=case["k256_key"]))
    response = client.post("/prpc/Worker.GetAttestationForAppKey", case["request"]).json()
    assert list(response) == ["quote", "event_log", "report_data", "vm_config"]
    assert response["report_data"] == case["report_data"]
    quote = Quote.parse(bytes.fromhex(response["quote"]))
    assert quote.report_data.hex() == case["report_data"]
    EventLog.parse(response["event_log"]).check(quote)


@pytest.mark.parametrize(
    "algorithm", ["", "rsa", "secp256k1-prehashed", "ED25519", "x" * 1000, 1, None]
)
def test_app_key_attestation_other_algorithm_is_400(external: Client, algorithm: object) -> None:
    """An unknown or missing algorithm is refused."""
    response = external.post("/prpc/GetAttestationForAppKey", {"algorithm": algorithm})
    assert response.status == 400
    if isinstance(algorithm, str):
        assert response.error() == "Unsupported algorithm"
    assert external.post("/prpc/GetAttestationForAppKey").error() == "Unsupported algorithm"


def test_app_key_attestation_of_other_names_is_that_of_secp256k1(external: Client) -> None:
    """k256 and secp256k1_prehashed are the same key, so they have the same text."""
    bodies = [
        external.post("/prpc/GetAttestationForAppKey", {"algorithm": name}).json()["report_data"]
        for name in ("secp256k1", "k256", "secp256k1_prehashed")
    ]
    assert bodies == [bodies[0]] * 3
    assert bytes.fromhex(bodies[0]).startswith(b"dip1::secp256k1c-pk:")


def test_app_key_attestation_is_cached(make_guest: MakeGuest, guest_client: GuestClient) -> None:
    """Evidence is created once per algorithm and register state."""
    guest = make_guest(Counting)
    backend = guest.attester.backend
    assert isinstance(backend, Counting)
    outside, inside = (
        guest_client("external", guest),
        guest_client("dstack", guest),
    )

    def collect_responses() -> set[bytes]:
        names = ("ed25519", "secp256k1", "k256", "secp256k1_prehashed", "ed25519", "rsa", "")
        responses = [outside.post("/prpc/GetAttestationForAppKey", {"algorithm": n}) for n in names]
        return {answer.body for answer in responses if answer.status == 200}

    before = collect_responses() | collect_responses()
    assert (len(before), backend.quotes) == (2, 2)
    inside.post("/EmitEvent", {"event": "a"})
    after = collect_responses() | collect_responses()
    assert (len(after), backend.quotes) == (2, 4)
    assert before.isdisjoint(after)
    answer = json.loads(after.pop())
    EventLog.parse(answer["event_log"]).check(Quote.parse(bytes.fromhex(answer["quote"])))
