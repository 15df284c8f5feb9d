"""Two services that prove each other while their TLS keys are renewed: `make rotation`.

Each service is a FastAPI application behind uvicorn with the middleware `Attested`, and asks the
other one through `attestkit.connect`. For half an hour, 20 clients let both ask each other, and
every few seconds both get a new key. The run fails if a request fails or arrives twice, if a proof
is refused, if an answer came from a key without proof, or if memory, descriptors or threads of the
process, in which all of this runs, grow after the first five minutes. The record is
docs/records/rotation.json; a run of less than ten minutes is not recorded.
"""

import argparse
import asyncio
import os
import random
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import uvicorn

import attestkit
from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._system.atomic_file import replace_file
from attestkit.client.asgi import Attested
from attestkit.client.proofs.proof import Proof
from attestkit.ra_tls.issuance import load_issued
from attestkit.testing import SimulatedTee
from attestkit.testing.tls_listener import LoopbackCa
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.client.test_mutual_rotation import MAX_AGE, TIMEOUT, Peer
from tests.long_runs.records import write_record
from tests.soak.load import LoadRecord
from tests.soak.resources import PERIOD, WARM, find_growth, has_grown, take_sample

SECONDS: Final = 1800.0
CLIENTS: Final = 20
PAUSE: Final = 0.2  # mean seconds between two requests of a client
RENEWAL: Final = 5.0  # seconds between two keys of a service
NONCE: Final = bytes(32)


class Service(Peer):
    """A service in a simulated TEE that renews its TLS key, and asks the other one.

    Attributes:
        ca: CA certificate of the service in PEM.
        url: Base URL.
        keys: SHA-256 of all its keys (SubjectPublicKeyInfo), in order.
        proven: Keys of the other service that were proven.
        refusals: Refused proofs of the other service.
    """

    def __init__(self, name: str, tee: SimulatedTee, folder: Path) -> None:
        super().__init__(name)
        self._issuer, self._file, self._key = LoopbackCa(), folder / f"{name}.pem", b""
        self.ca = self._issuer.pem
        self.keys: list[bytes] = []
        self.proven: set[bytes] = set()
        self.refusals: list[str] = []
        self.proofs = self.answers = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._renew()
        self.app.add_api_route("/renew", self.renew)
        self.app.add_middleware(Attested, tee=tee, tls=self._file, name=name)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    async def renew(self) -> None:
        """Use a new key for new connections; runs in the event loop, which uses the context."""
        self._renew()

    def _renew(self) -> None:
        issued = self._issuer.issue()
        leaf = issued.certificate_chain[0]
        spki = read_certificate(leaf).spki_der
        earlier = encode_pem("PUBLIC KEY", self._key) if self._key else ""
        replace_file(self._file, (leaf + earlier).encode(), mode=0o600)  # the document first
        load_issued(self._context, issued)
        self._key = spki
        self.keys.append(sha256(spki))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer requests, in a thread, until the end of the block."""
        config = uvicorn.Config(
            self.app,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=60,  # seconds; clients close idle connections after five
            ssl_context_factory=lambda *_: self._context,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [self._listener]})
        thread.start()
        try:
            yield
        finally:
            server.should_exit = True
            thread.join()

    def take_events(self) -> None:
        """Count events and answers, and forget them."""
        events, self.events[:] = list(self.events), []
        for event in events:
            if isinstance(event, Proof):
                self.proofs += 1
                self.proven.update(binding.key for binding in event.bindings)
            else:
                self.refusals.append(str(event))
        self.answers += len(self.answered)
        self.answered.clear()


def policy_of(tee: SimulatedTee) -> Verifier:
    """Return a verifier that pins the app of a TEE."""
    result = tee.verify(tee.attest(nonce=NONCE), nonce=NONCE)
    return tee.verifier(policy=AppraisalPolicy.from_evidence(result))


class Load:
    """Clients that let both services ask each other, and renew their keys.

    Args:
        services: Both services.
        record: Durations and failures.
        seconds: Duration.
    """

    def __init__(self, services: list[Service], record: LoadRecord, seconds: float) -> None:
        self._services, self._record = services, record
        self._end = time.monotonic() + seconds
        self._numbers = count()
        trust = ssl.create_default_context(cadata="".join(one.ca for one in services))
        self._http = httpx.AsyncClient(verify=trust, timeout=TIMEOUT)

    async def run(self) -> list[dict[str, Any]]:
        """Work until the end; return the samples."""
        async with self._http:
            work = [asyncio.create_task(self._ask()) for _ in range(CLIENTS)]
            work.append(asyncio.create_task(self._renew()))
            samples = await self._sample()
            await asyncio.gather(*work)
            for service in self._services:
                await self._get(f"{service.url}/stop", None)
                service.take_events()
        return samples

    async def _ask(self) -> None:
        while time.monotonic() < self._end:
            await asyncio.sleep(random.uniform(0, 2 * PAUSE))
            number = next(self._numbers)
            asked, answering = number % 2, "ba"[number % 2]
            begin = time.perf_counter()
            expected = {"name": answering, "number": number}
            await self._get(f"{self._services[asked].url}/ask/{number}", expected)
            self._record.milliseconds.append((time.perf_counter() - begin) * 1000)
            self._record.requests[answering] += 1

    async def _renew(self) -> None:
        while self._end - time.monotonic() > RENEWAL:
            await asyncio.sleep(RENEWAL)
            for service in self._services:
                await self._get(f"{service.url}/renew", None)

    async def _get(self, url: str, expected: object) -> None:
        try:
            answer = await self._http.get(url)
            found = answer.json() if answer.status_code == 200 else answer.text[:200]
        except httpx.HTTPError as error:
            found = f"{type(error).__name__}: {error}"
        if found != expected:
            self._record.failures[str(found)] += 1

    async def _sample(self) -> list[dict[str, Any]]:
        begin, samples = time.monotonic(), []
        while (left := self._end - time.monotonic()) > 0:
            await asyncio.sleep(min(PERIOD, left))
            for service in self._services:
                service.take_events()
            taken = self._record.take_durations()
            samples.append(take_sample(os.getpid(), time.monotonic() - begin, taken))
        return samples


def soak(seconds: float, record: LoadRecord) -> tuple[list[Service], list[dict[str, Any]]]:
    """Run both services under load; return them and the samples."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ak")))
        tees = [stack.enter_context(SimulatedTee()) for _ in range(2)]
        services = [Service(name, tee, folder) for name, tee in zip("ab", tees, strict=True)]
        for service in services:
            stack.enter_context(service.serving())
        for service, other, tee in zip(services, services[::-1], tees[::-1], strict=True):
            service.endpoint = stack.enter_context(
                attestkit.connect(
                    other.url,
                    policy=policy_of(tee),
                    server_ca=other.ca,
                    max_age=MAX_AGE,
                    timeout=TIMEOUT,
                    on_proof=service.events.append,
                )
            )
        return services, asyncio.run(Load(services, record, seconds).run())


def check(services: list[Service], record: LoadRecord) -> Counter[str]:
    """Return the failures: of requests, of proofs, and of what the services saw."""
    failures = Counter(record.failures)
    for service, other in zip(services, services[::-1], strict=True):
        failures.update(service.refusals)
        asked = record.requests["ab"[services.index(service)]]
        if service.answers != asked:
            failures[f"{asked} requests, {service.answers} arrived"] += 1
        if not service.used <= service.proven <= set(other.keys):
            failures["an answer of a key without proof, or a proof of a key of nobody"] += 1
        if len(service.used) < len(other.keys) / 2:
            failures[f"only {len(service.used)} of {len(other.keys)} keys were met"] += 1
    return failures


def main() -> int:
    """Return 0 if nothing failed, and nothing grew after the warm-up."""
    parser = argparse.ArgumentParser(description="Services that prove each other and renew keys.")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    seconds = parser.parse_args().seconds
    record = LoadRecord()
    services, samples = soak(seconds, record)
    failures, growth = check(services, record), find_growth(samples)
    figures = {
        "command": f"python -m tests.soak.rotation --seconds {seconds:g}",
        "clients": CLIENTS,
        "requests": record.requests.total(),
        "failures": dict(failures),
        "growth": growth,
        "keys": [len(service.keys) for service in services],
        "keys_met": [len(service.used) for service in services],
        "proofs": [service.proofs for service in services],
    }
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in figures.items()))
    if seconds >= 2 * WARM:
        write_record("rotation", {**figures, "samples": samples})
    return 1 if failures or has_grown(growth) else 0


if __name__ == "__main__":
    sys.exit(main())
