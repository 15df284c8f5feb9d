"""Release of an app's keys by the simulated KMS, beside the bare TLS handshakes that it needs.

`kms-get-app-key`: a client makes a TLS key, evidence over it and a certificate, requests the
temporary CA and, on a second connection with its certificate, the keys, and checks them; the KMS
verifies the evidence and derives the keys. Both run in this process, so that the clock counts both.
The peer is OpenSSL's two handshakes alone, both sides in memory, with the same certificates and
prepared contexts: one anonymous, one in which both sides sign and verify. `kms-client` and
`kms-server` are the parts of either side: the time of the calling thread, and of all others.
"""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median
from typing import Final, NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import attestkit
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.backends.simulator.faults.kms_faults import KmsFaults
from attestkit.kms import KmsClient, SimulatedKms
from attestkit.kms.https_call import AttestedKey, ClientCa, anonymous_context, rooted_context
from attestkit.kms.release.authorization import DevAuthorization
from attestkit.kms.release.roots import KmsRoots
from attestkit.kms.release.state_folder import create_state
from attestkit.serve.kms_service.server_identity import KmsParts, ServerIdentity
from benchmarks.cases import OURS, SEED
from benchmarks.racing import Entry, Ledger, each, own_row, play
from benchmarks.results import Result

PEER: Final = "OpenSSL"
HOST: Final = "localhost"
ROUNDS: Final = 200
_RESOURCES: Final = ExitStack()  # opened with the first use


class Parties(NamedTuple):
    """A guest with a client of the KMS, and the bare handshakes."""

    fetch: Callable[[], object]
    shake_hands: Callable[[], object]


_PARTIES: list[Parties] = []


def parties() -> Parties:
    """Return the guest and its KMS, which run until the end of this module's tests."""
    if not _PARTIES:
        tee = _RESOURCES.enter_context(attestkit.open("simulator", seed=SEED))
        kms = _RESOURCES.enter_context(SimulatedKms(tee.verifier(), seed=SEED, domain=HOST))
        client = KmsClient(kms.url, roots=[kms.root], attester=tee)

        def fetch() -> bool:
            with client.get_app_keys() as keys:
                return len(keys.disk_crypt_key) == 32

        _PARTIES.append(Parties(fetch, bare_handshakes(tee)))
    return _PARTIES[0]


@pytest.fixture(scope="module", autouse=True)
def stopped() -> Iterator[None]:
    """Stop guest and KMS after the tests."""
    yield
    _RESOURCES.close()
    _PARTIES.clear()


def bare_handshakes(tee: "attestkit.Attester") -> Callable[[], bool]:
    """Return both handshakes of a release of keys, without sockets."""
    now = int(time.time())
    state = create_state(KmsRoots.from_seed(SEED), HOST, now)
    parts = KmsParts(tee.verifier(), DevAuthorization(), None, KmsFaults.of(None), time.time)
    server = ServerIdentity(state, parts).next_context()
    root = read_certificate(state.root_pem)
    temp_ca = ClientCa(read_certificate(state.temp_ca_pem), state.roots.temp_ca_key, root)
    issued = AttestedKey(tee.attest).certify(temp_ca, now)
    clients = anonymous_context(), rooted_context(root, issued)

    def shake_hands() -> bool:
        for client in clients:
            handshake(client, server)
        return True

    return shake_hands


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Make one TLS connection in memory, until both sides are done."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=HOST),
        server.wrap_bio(up, down, server_side=True),
    ]
    while ends:
        for end in ends[:]:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)


ROWS: Final = (
    own_row(
        "kms-get-app-key",
        f"keys of an app fetched from a simulated KMS, both sides; {PEER}: both handshakes",
        {
            OURS: lambda: parties().fetch(),
            PEER: lambda: parties().shake_hands(),
        },
        str,
    ),
)


@each(ROWS)
def test_kms(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of the row."""
    play(benchmark, ledger, entry)


def test_either_side(ledger: Ledger, *, quick: bool) -> None:
    """Processor time of client and KMS for one release."""
    fetch = parties().fetch
    for _ in range(1 if quick else 10):  # warm
        fetch()
    if quick:
        return
    client, server = [], []
    for _ in range(ROUNDS):
        own, every = time.thread_time(), time.process_time()
        fetch()
        own, every = time.thread_time() - own, time.process_time() - every
        client.append(own)
        server.append(every - own)
    for row, side, found in (("client", "client", client), ("server", "KMS", server)):
        seconds = median(found)
        what = f"keys of an app fetched: the {side}'s side"
        ledger.add(Result(f"kms-{row}", what, "s", {OURS: seconds}, {}, seconds * 1000))
