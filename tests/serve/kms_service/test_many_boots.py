"""Many guests at once, hostile clients among them: all are served, in order, within limits."""

import contextlib
import json
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from attestkit.kms import SimulatedKms
from attestkit.kms.release.authorization import Decision
from attestkit.serve import job_queue
from attestkit.serve.config.limits import Limits
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.kms_service import client_evidence, request_queue
from tests.kms.replayed_kms import BOOT
from tests.serve.kms_service.kms_clients import (
    SECONDS,
    anonymous,
    guest,
    running_webhook,
    with_certificate,
)
from tests.verifier.platforms import intel

BOOTS = 200
NOW = intel.NOW.timestamp()


def make_kms(**options: Any) -> SimulatedKms:
    """Start a KMS that accepts claims about the image."""
    return SimulatedKms(
        intel.verifier(), seed=bytes(32), now=lambda: NOW, image_verify=False, **options
    )


@pytest.fixture
def kms() -> Iterator[SimulatedKms]:
    """Run a KMS."""
    with make_kms() as found:
        yield found


@pytest.mark.slow
def test_200_boots_are_served(kms: SimulatedKms) -> None:
    """Each of 200 simultaneous boots gets the keys of the app, over a connection of its own."""
    client = guest(kms)
    start = threading.Barrier(BOOTS)

    def boot(_: int) -> bytes:
        start.wait(SECONDS)
        answer = client.call("GetAppKey", {"api_version": 1})
        assert answer.status == 200
        return answer.body

    with ThreadPoolExecutor(BOOTS) as pool:
        assert len(set(pool.map(boot, range(BOOTS)))) == 1


def test_requests_are_decided_in_the_order_of_their_arrival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one decision takes long, the others wait in order; none overtakes another."""
    monkeypatch.setattr(job_queue, "RELIEF_SECONDS", SECONDS)  # one thread
    begun, go_on = threading.Event(), threading.Event()
    decided: list[bytes] = []

    def decide(boot: Any) -> Decision:
        decided.append(boot.instance_id)
        if len(decided) == 1:
            begun.set()
            go_on.wait(SECONDS)
        return Decision.allow()

    ids = [bytes([number + 1]) * 20 for number in range(20)]
    submitted: list[object] = []
    submit = JobThreads.submit

    def count(threads: JobThreads, work: Callable[[], None], /) -> None:
        submit(threads, work)
        submitted.append(work)

    with make_kms(auth=decide) as kms, ThreadPoolExecutor(len(ids)) as pool:
        clients = [guest(kms, _boot_of(instance)) for instance in ids]
        monkeypatch.setattr(JobThreads, "submit", count)
        futures = []
        for number, client in enumerate(clients, 2):  # the first: reading its evidence, deciding
            futures.append(pool.submit(client.call, "GetAppKey"))
            assert wait_until(partial(has_size, submitted, number))
        assert begun.wait(SECONDS)
        go_on.set()
        assert [future.result(SECONDS).status for future in futures] == [200] * len(ids)
    assert decided == ids


def has_size(values: list[object], size: int) -> bool:
    """Return whether a list has this number of values."""
    return len(values) == size


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; return whether it does."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def _boot_of(instance_id: bytes) -> tuple[tuple[str, bytes], ...]:
    changed = {**dict(BOOT), "instance-id": instance_id}
    return tuple((name, changed[name]) for name, _ in BOOT)


def test_full_queue_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is turned away may retry; that is no refusal."""
    monkeypatch.setattr(request_queue, "LIMIT", 1)
    begun, go_on = threading.Event(), threading.Event()

    def decide(_: Any) -> Decision:
        begun.set()
        go_on.wait(SECONDS)
        return Decision.allow()

    with make_kms(auth=decide) as kms, ThreadPoolExecutor(1) as pool:
        client = guest(kms)
        first = pool.submit(client.call, "GetAppKey")
        assert begun.wait(SECONDS)
        assert client.call("GetAppKey").status == 503
        go_on.set()
        assert first.result(SECONDS).status == 200


def test_evidence_is_read_in_a_thread_of_the_queue(
    kms: SimulatedKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding takes no time of the event loop, which serves the other clients."""
    names = []

    def read(certificate: str) -> client_evidence.ClientEvidence | None:
        names.append(threading.current_thread().name)
        return read_client_evidence(certificate)

    read_client_evidence = client_evidence.read_client_evidence
    monkeypatch.setattr(client_evidence, "read_client_evidence", read)
    client = guest(kms)
    assert client.call("GetAppKey").status == 200
    assert [name.rpartition("_")[0] for name in names] == ["kms"]


def test_late_request_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that takes too long is given up."""
    monkeypatch.setattr(request_queue, "SECONDS", 0.05)
    go_on = threading.Event()
    with make_kms(auth=lambda _: Decision(go_on.wait(SECONDS))) as kms:
        client = guest(kms)
        assert client.call("GetAppKey").status == 503
        go_on.set()


def test_idle_handshakes_do_not_starve_clients() -> None:
    """Connections that send nothing are closed after the time limit, and are counted."""
    with make_kms(limits=Limits(head_seconds=0.2, drain_seconds=0)) as kms, ExitStack() as stack:
        port = int(kms.url.rpartition(":")[2])
        silent = [
            stack.enter_context(socket.create_connection(("localhost", port), SECONDS))
            for _ in range(50)
        ]
        assert anonymous(kms).call("GetMeta").status == 200
        for sock in silent:
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""


def test_too_many_handshakes_are_closed_at_once() -> None:
    """The limit of connections holds for handshakes too."""
    with make_kms(limits=Limits(connections=4, drain_seconds=0)) as kms, ExitStack() as stack:
        port = int(kms.url.rpartition(":")[2])
        for _ in range(4):
            stack.enter_context(socket.create_connection(("localhost", port), SECONDS))
        with pytest.raises((ssl.SSLError, OSError)):
            anonymous(kms).call("GetMeta")


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"\0" * 70_000]
)
def test_client_without_tls_gets_no_response(sent: bytes, kms: SimulatedKms) -> None:
    """Such a connection is closed, and the server goes on."""
    port = int(kms.url.rpartition(":")[2])
    connection = socket.create_connection(("localhost", port), SECONDS)
    with connection as sock, contextlib.suppress(ConnectionError):
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        assert b"HTTP" not in sock.recv(100)
    assert anonymous(kms).call("GetMeta").status == 200


def test_large_body_is_refused(kms: SimulatedKms) -> None:
    """Above the limit of the listener, with 413."""
    client = anonymous(kms)
    headers = {"Content-Length": str(1 << 30), "Content-Type": "application/json"}
    assert client.send("POST", "/prpc/SignCert", b"", headers).status == 413


@pytest.mark.parametrize("size", [0, 1, 40, 4000])
def test_random_evidence_is_refused(size: int, kms: SimulatedKms) -> None:
    """An extension that is no evidence is an error of the client."""
    answer = with_certificate(kms, b"\x5a" * size).call("GetAppKey")
    assert answer.status == 400
    text = "Failed to decode attestation from cert extension: "
    assert answer.json()["error"].startswith(text)


def test_refused_evidence_is_counted_once(kms: SimulatedKms) -> None:
    """Evidence that is refused before the call is one request to its method, and one failure."""
    client = with_certificate(kms, b"\x5a")
    for number in (1, 2):
        assert client.call("GetAppKey").status == 400
        text = anonymous(kms).send("GET", "/metrics").body.decode()
        assert re.findall(r"^dstack_kms_\w+ (\d+)$", text, re.MULTILINE) == [str(number)] * 2


# -- what is logged --------------------------------------------------------------------------------


def test_log_has_method_app_and_reason_but_no_keys(
    kms: SimulatedKms, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither keys nor the VM configuration are logged, at any level."""
    caplog.set_level(logging.DEBUG)
    client = guest(kms)
    config = '{"cpu_count":77123}'
    released = client.call("GetAppKey", {"api_version": 1, "vm_config": ""}).json()
    assert client.call("GetAppKey", {"api_version": 1, "vm_config": config}).status == 400
    assert client.call("GetKmsKey").status == 400
    text = caplog.text
    assert f"GetAppKey for app {dict(BOOT)['app-id'].hex()}: released" in text
    assert "this KMS does not release its roots" in text
    assert config not in text
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key"):
        assert released[name] not in text
    assert "PRIVATE KEY" not in text


def test_errors_have_no_keys(kms: SimulatedKms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an unexpected error sends no more than the id of the request."""

    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("k256 " + "ab" * 32)

    client = guest(kms)
    monkeypatch.setattr("attestkit.serve.kms_service.release_engine.release_app_keys", fail)
    answer = client.call("GetAppKey")
    assert answer.status == 500
    assert "abab" not in json.dumps(answer.json())


def test_webhook_that_fails_is_a_failure_of_the_kms() -> None:
    """500, which clients retry, and not a refusal."""
    with running_webhook() as webhook, make_kms(auth=webhook.url) as kms:
        webhook.status = 503
        assert guest(kms).call("GetAppKey").status == 500
        webhook.status, webhook.body = 200, b'{"isAllowed":true,"reason":"","gatewayAppId":""}'
        assert guest(kms).call("GetAppKey").status == 200
