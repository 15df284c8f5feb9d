"""What strangers may ask over TCP: who the app is and evidence for its key, and nothing else."""

import asyncio
import json
from typing import Any

import pytest

from attestkit.event_log import EventLog
from attestkit.quote import Quote
from attestkit.serve import listener_apps
from attestkit.serve.services import dstack_guest, tappd
from tests.serve.asgi import Client
from tests.serve.guests import Counting, MakeGuest, vector_keys
from tests.vectors import load, needs_shared

APP_KEY = load("app_key_attestation.json")


def test_info_is_that_of_the_agent(dstack: Client, external: Client) -> None:
    """By default nothing is hidden."""
    for path in ("/prpc/Info", "/prpc/Worker.Info"):
        assert external.get(path).body == dstack.get("/Info").body


def test_hidden_measurements(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """An app that hides its measurements hides them from strangers only."""
    guest = make_guest(compose={"public_tcbinfo": False})
    inside = Client(listener_apps.dstack_app(guest), loop).get("/Info").json()
    outside = Client(listener_apps.external_app(guest), loop).post("/prpc/Worker.Info").json()
    assert (outside["tcb_info"], outside["vm_config"]) == ("", "")
    assert inside["tcb_info"] != "" != inside["vm_config"]
    assert {**outside, "tcb_info": "", "vm_config": ""} == {
        **inside,
        "tcb_info": "",
        "vm_config": "",
    }
    assert Client(listener_apps.tappd_app(guest), loop).get("/prpc/Info").json() == inside


@pytest.mark.parametrize(
    "name", sorted({*dstack_guest.SERVICE.methods, *tappd.SERVICE.methods} - {"Info", "Version"})
)
@pytest.mark.parametrize("path", ["/{}", "/prpc/{}", "/prpc/Tappd.{}", "/prpc/Worker.{}"])
def test_no_other_method_is_on_tcp(external: Client, name: str, path: str) -> None:
    """Key, quote, sign and event methods are never reachable over TCP."""
    for response in (external.get(path.format(name)), external.post(path.format(name))):
        assert response.status == 404


def test_version_is_in_every_response(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """X-App-Version tells release and revision, also with a 404 and a page."""
    client = Client(listener_apps.external_app(make_guest()), loop)
    for path in ("/prpc/Worker.Version", "/nope", "/", "/prpc/Nope"):
        assert client.get(path).headers["x-app-version"] == "v0.5.11 (unknown)"
    assert client.get("/prpc/Version").json() == {"version": "0.5.11", "rev": "unknown"}


@needs_shared
@pytest.mark.parametrize("case", APP_KEY.get("cases", []), ids=str)
def test_evidence_for_the_signing_key(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, case: dict[str, Any]
) -> None:
    """What is quoted is the vectors' text, and the answer is that of GetQuote."""
    client = Client(
        listener_apps.external_app(make_guest(app_keys=vector_keys(k256_key=case["k256_key"]))),
        loop,
    )
    response = client.post("/prpc/Worker.GetAttestationForAppKey", case["request"]).json()
    assert list(response) == ["quote", "event_log", "report_data", "vm_config"]
    assert response["report_data"] == case["report_data"]
    quote = Quote.parse(bytes.fromhex(response["quote"]))
    assert quote.report_data.hex() == case["report_data"]
    EventLog.parse(response["event_log"]).check(quote)


@pytest.mark.parametrize(
    "algorithm", ["", "rsa", "secp256k1_prehashed", "ED25519", "x" * 1000, 1, None]
)
def test_other_algorithms_are_refused(external: Client, algorithm: object) -> None:
    """Everything but the three names is a 400; so is leaving it out."""
    response = external.post("/prpc/GetAttestationForAppKey", {"algorithm": algorithm})
    assert response.status == 400
    if isinstance(algorithm, str):
        assert response.error() == "Unsupported algorithm"
    assert external.post("/prpc/GetAttestationForAppKey").error() == "Unsupported algorithm"


def test_strangers_cannot_work_the_device(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop
) -> None:
    """Evidence is made once per algorithm until a register changes; refusals make none."""
    guest = make_guest(Counting)
    backend = guest.attester.backend
    assert isinstance(backend, Counting)
    outside, inside = (
        Client(listener_apps.external_app(guest), loop),
        Client(listener_apps.dstack_app(guest), loop),
    )

    def ask() -> set[bytes]:
        names = ("ed25519", "secp256k1", "k256", "ed25519", "rsa", "")
        answers = [outside.post("/prpc/GetAttestationForAppKey", {"algorithm": n}) for n in names]
        return {answer.body for answer in answers if answer.status == 200}

    before = ask() | ask()
    assert (len(before), backend.quotes) == (2, 2)
    inside.post("/EmitEvent", {"event": "a"})
    after = ask() | ask()
    assert (len(after), backend.quotes) == (2, 4)
    assert before.isdisjoint(after)
    answer = json.loads(after.pop())
    EventLog.parse(answer["event_log"]).check(Quote.parse(bytes.fromhex(answer["quote"])))
