"""`POST /verify` of the verifier service, beside a raw ASGI application that verifies inline.

Processor time of the server's threads per request, as in `test_serve.py`; 1 and 8 connections, and
evidence of one platform. The service may use all cores: it verifies in threads, while the peer's
event loop does nothing else during a verification.
"""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from attestkit import Attester
from attestkit._crypto.pem import encode_pem
from attestkit.backends.simulator import Simulator
from benchmarks.cases import OURS
from benchmarks.racing import Ledger
from benchmarks.results import Result
from benchmarks.serve.load import Contestant, post
from tests.serve.server import SEED, command, environment, ready_server

ROUNDS = 9
SECONDS = 0.4
PEER = "raw ASGI"


class Race(NamedTuple):
    """The servers, and the request that both answer."""

    ours: Contestant
    peer: Contestant
    request: bytes


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Race]:
    """The service and its peer, with the trust anchor and the collateral of a simulator."""
    folder = tmp_path_factory.mktemp("verify")
    anchor, collateral = folder / "anchor.pem", folder / "collateral.json"
    with closing(Simulator(seed=bytes.fromhex(SEED))) as simulator:
        simulator.collateral().save(collateral)
        anchor.write_text(encode_pem("CERTIFICATE", simulator.trust_anchor), encoding="ascii")
        evidence = Attester(simulator).attest(report_data=bytes(64)).to_bytes()
    body = json.dumps({"attestation": evidence.hex()}).encode()
    options = ("--trust-anchor", str(anchor), "--verifier-collateral", str(collateral))
    words = command("--backend", "none", "--verifier", "127.0.0.1:0", *options)
    with ready_server(words, folder, environment(), cwd=folder) as server:
        url = urlsplit(server.ready["verifier"])
        address = str(url.hostname), int(url.port or 0)
        length = response_length(address, body)
        program = [sys.executable, "-m", "benchmarks.serve.raw_verifier"]
        words = [*program, str(anchor), str(collateral), str(length)]
        with subprocess.Popen(
            words,
            cwd=Path(__file__).parents[2],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            peer = ("127.0.0.1", int(process.stdout.readline()))
            ours = Contestant(address, server.process.pid)
            yield Race(ours, Contestant(peer, process.pid), post("/verify", body))
            process.terminate()
        server.process.terminate()


def response_length(address: tuple[str, int], body: bytes) -> int:
    """Return the length of the response's body; the evidence must be valid."""
    with closing(http.client.HTTPConnection(*address)) as connection:
        connection.request("POST", "/verify", body)
        found = connection.getresponse().read()
    assert json.loads(found)["is_valid"] is True
    return len(found)


@pytest.mark.parametrize("connections", [1, 8])
def test_verify_requests(race: Race, connections: int, ledger: Ledger, *, quick: bool) -> None:
    """Both servers in turn."""
    contestants = (race.ours, race.peer)
    for contestant in contestants:  # warm
        contestant.measure(race.request, 0.01 if quick else SECONDS, connections)
    if quick:
        return
    rounds = [
        [one.measure(race.request, SECONDS, connections) for one in contestants]
        for _ in range(ROUNDS)
    ]
    ours, peer = (median(found[at][0] for found in rounds) for at in (0, 1))
    ratio = median(found[1][0] / found[0][0] for found in rounds)
    print(
        f"\nPOST /verify, {connections} connections: attestkit {ours * 1e6:.0f} us, "
        f"{PEER} {peer * 1e6:.0f} us of processor time, ratio {ratio:.2f}"
    )
    what = f"POST /verify, {connections} connection{'s'[: connections > 1]}"
    values, ratios = {OURS: ours, PEER: peer}, {PEER: ratio}
    note = "processor time; the peer blocks its event loop"
    ledger.add(Result(f"post-verify-{connections}", what, "s", values, ratios, note=note))
