"""A context presents a fresh certificate once half the life of the old one is over."""

import logging
import os
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit.errors import BackendError
from attestkit.ra_tls import contexts
from attestkit.ra_tls.contexts import RenewingContext
from tests.processes import in_child
from tests.ra_tls import tds
from tests.ra_tls.talks import TIMEOUT, MemoryPair, connected
from tests.verifier.platforms import intel

MINUTE, HOUR = 60.0, 3600.0
SECRET = "SECRET"
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = intel.NOW.timestamp()

    def __call__(self) -> float:
        """Return the time in seconds since 1970."""
        return self.at

    def date(self) -> datetime:
        """Return the time as a datetime."""
        return datetime.fromtimestamp(self.at, timezone.utc)


class Source:
    """Issues certificates, counts them, and fails on demand."""

    def __init__(self, clock: Clock, **dates: Any) -> None:
        self.clock, self.dates = clock, dates
        self.renewals = 0
        self.error: Exception | None = None
        self.proceed = threading.Event()
        self.proceed.set()

    def issue(self) -> ra_tls.Issued:
        """Return a renewable certificate with a new key."""
        assert tds.KEYS.ca_key is not None
        issued = ra_tls.issue(
            subject="an app",
            attest=tds.attest_valid,
            ca_cert=tds.CA,
            ca_key=tds.KEYS.ca_key,
            usage_ra_tls=True,
            now=self.clock,
            **self.dates,
        )
        return issued._replace(renew=self.renew)

    def renew(self) -> ra_tls.Issued:
        """Issue another certificate."""
        assert self.proceed.wait(TIMEOUT)
        self.renewals += 1
        if self.error is not None:
            raise self.error
        return self.issue()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let connections wait for a renewal on a busy machine, too."""
    monkeypatch.setattr(contexts, "PATIENCE", float(TIMEOUT))


@pytest.fixture
def clock() -> Clock:
    """Return a clock at the verifier's time."""
    return Clock()


@pytest.fixture
def source(clock: Clock) -> Source:
    """Return a source of certificates."""
    return Source(clock)


def serve(source: Source) -> ssl.SSLContext:
    """Return the context of a server that renews its certificate."""
    return ra_tls.server_context(issued=source.issue(), now=source.clock)


def in_memory(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """Connect in memory; return the certificate that the client received."""
    pair = MemoryPair(server, client)
    pair.handshake()
    return pair.client.getpeercert(binary_form=True)


def over_sockets(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """Connect over sockets; return the certificate that the client received."""
    with connected(server, client) as (end, future):
        future.result(TIMEOUT)
        return end.getpeercert(binary_form=True)


def presented(
    server: ssl.SSLContext, connect: Callable[..., bytes | None] = in_memory
) -> Certificate:
    """Return the certificate that a server presents to a new connection."""
    der = connect(server, tds.blind_context())
    assert der is not None
    return read_certificate(der)


def thread_of(context: ssl.SSLContext) -> threading.Thread:
    """Return the thread of the last renewal."""
    assert isinstance(context, RenewingContext)
    assert context._thread is not None
    return context._thread


# -- renewal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("connect", [in_memory, over_sockets])
def test_server_presents_fresh_certificate_after_half_life(
    clock: Clock, source: Source, connect: Callable[..., bytes | None]
) -> None:
    """Over days, each connection gets a certificate in the first half of its life."""
    server = serve(source)
    first = presented(server, connect)
    clock.at += 25 * MINUTE
    assert presented(server, connect).der == first.der
    clock.at += 6 * MINUTE
    second = presented(server, connect)
    assert second.spki_der != first.spki_der
    assert presented(server, connect).der == second.der
    for _ in range(3):
        clock.at += 30 * HOUR  # long after the end of the last one
        found = presented(server, connect)
        half = found.valid_from + (found.valid_until - found.valid_from) / 2
        assert found.valid_from <= clock.date() < half
    assert source.renewals == 4


def test_client_presents_fresh_certificate_after_half_life(clock: Clock, source: Source) -> None:
    """A client's context renews the certificate that it presents to servers."""
    client = tds.client_context(source.issue(), now=clock)
    server = tds.server_context(verifier=intel.verifier(clock=clock.date))
    server.verify_flags |= _NO_CHECK_TIME  # OpenSSL uses the system clock
    found = []
    for _ in range(3):
        pair = MemoryPair(server, client)
        pair.handshake()
        found.append(ra_tls.peer(pair.server).claims.report_data)
        clock.at += 20 * MINUTE
    assert found[0] == found[1] != found[2]
    assert source.renewals == 1


def test_renewed_certificate_is_accepted_by_default(clock: Clock, source: Source) -> None:
    """A certificate issued with defaults is accepted with defaults, days later too."""
    verifier = intel.verifier(clock=clock.date)
    server = serve(source)
    client = ra_tls.client_context(verifier, any_app=True)
    for _ in range(3):
        pair = MemoryPair(server, client)
        pair.handshake()
        step = ra_tls.peer(pair.client).steps[-1]
        assert (step.check, step.outcome) == ("certificate_key", "passed")
        clock.at += 12 * HOUR


def test_issue_defaults_to_an_hour_and_renews(clock: Clock) -> None:
    """The default is an hour from now; a certificate with explicit dates is not renewed."""
    assert tds.KEYS.ca_key is not None
    options: dict[str, Any] = {"subject": "", "attest": tds.attest_valid, "now": clock}
    options |= {"ca_cert": tds.CA, "ca_key": tds.KEYS.ca_key}
    issued = ra_tls.issue(**options)
    leaf = read_certificate(issued.certificate_chain[0])
    assert leaf.valid_until == clock.date() + timedelta(hours=1)
    assert clock.date() - timedelta(minutes=5) == leaf.valid_from
    assert issued.renew is not None
    assert issued.renew().key_pem != issued.key_pem
    end = int(clock.at) + 60
    explicit: list[dict[str, Any]] = [
        {"not_after": end},
        {"not_before": end - 120},
        {"not_before": 1, "not_after": end},
    ]
    for dates in explicit:
        assert ra_tls.issue(**options, **dates).renew is None
    assert not isinstance(ra_tls.server_context(issued=tds.VALID), RenewingContext)


def test_certificate_of_agent_counts_as_a_day(clock: Clock) -> None:
    """A certificate of 1975 to 2036 is renewed half a day after it was loaded, and not before."""
    source = Source(clock, not_before=157_766_400, not_after=int(clock.at + 3650 * 24 * HOUR))
    server = serve(source)
    for hours, renewals in ((11.9, 0), (0.2, 1), (11.7, 1), (0.5, 2)):
        clock.at += hours * HOUR
        presented(server)
        assert source.renewals == renewals


def test_renewal_leaves_no_descriptor_and_no_file(
    clock: Clock, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New keys are loaded from memory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    server = serve(source)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        clock.at += HOUR
        presented(server)
    assert source.renewals == 3
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("agent", [False, True])
def test_certificate_of_a_clock_that_was_ahead_is_replaced(
    clock: Clock, source: Source, agent: bool
) -> None:
    """Peers refuse it until it begins, or count its life from a day that has not come."""
    if agent:
        source.dates = {"not_before": 157_766_400, "not_after": int(clock.at + 3650 * 24 * HOUR)}
    clock.at += 24 * HOUR
    server = serve(source)
    ahead = presented(server)
    clock.at -= 24 * HOUR
    found = presented(server)
    assert found.der != ahead.der
    assert found.valid_from <= clock.date() < found.valid_until
    assert presented(server).der == found.der
    clock.at += (11 if agent else 0.4) * HOUR
    assert presented(server).der == found.der
    assert source.renewals == 1


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BackendError("the device is busy", reason="io_error"), "the device is busy"),
        (ValueError(SECRET), "ValueError"),
    ],
)
def test_failed_renewal_keeps_certificate_and_is_repeated(
    clock: Clock, source: Source, caplog: pytest.LogCaptureFixture, error: Exception, text: str
) -> None:
    """The old certificate stays in use; the next attempt comes after a minute, and succeeds."""
    server = serve(source)
    old = presented(server)
    source.error = error
    clock.at += 31 * MINUTE
    with caplog.at_level(logging.WARNING, "attestkit.ra_tls"):
        for _ in range(5):
            assert presented(server).der == old.der
    assert source.renewals == 1
    assert [text in record.getMessage() for record in caplog.records] == [True]
    assert SECRET not in caplog.text
    source.error = None
    clock.at += contexts.RETRY - 1
    assert presented(server).der == old.der
    clock.at += 1
    assert presented(server).der != old.der


def test_failed_renewal_is_repeated_after_the_clock_was_set_back(
    clock: Clock, source: Source
) -> None:
    """The time of the last attempt, which has not come yet, does not delay the next one."""
    server = serve(source)
    old = presented(server)
    source.error = BackendError("the device is busy", reason="io_error")
    clock.at += 24 * HOUR
    assert presented(server).der == old.der
    source.error = None
    clock.at -= 24 * HOUR - 31 * MINUTE
    assert presented(server).der != old.der
    assert source.renewals == 2


def test_source_whose_clock_is_ahead_is_limited(clock: Clock) -> None:
    """Its certificates begin later, as new ones would; they are renewed after half their life."""
    ahead = Clock()
    ahead.at += HOUR
    source = Source(ahead)
    server = ra_tls.server_context(issued=source.issue(), now=clock)
    for _ in range(5):
        presented(server)
        clock.at += contexts.RETRY
    assert source.renewals == 0
    for moved in (clock, ahead):
        moved.at += 90 * MINUTE
    for _ in range(5):
        presented(server)
        clock.at += contexts.RETRY
    assert source.renewals == 1


@pytest.mark.parametrize(
    "wrong", [None, "PEM", tds.VALID._replace(key_pem=tds.issue(key=None).key_pem)], ids=repr
)
def test_unusable_renewed_certificate_keeps_old_one(
    clock: Clock, source: Source, wrong: Any
) -> None:
    """A result of another type, or whose key does not fit, leaves the context as it was."""
    server = ra_tls.server_context(issued=source.issue()._replace(renew=lambda: wrong), now=clock)
    old = presented(server)
    clock.at += 31 * MINUTE
    assert presented(server).der == old.der
    clock.at += 2 * HOUR
    assert presented(server).der == old.der


def test_thread_that_cannot_start_keeps_certificate(
    clock: Clock, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a thread, as at the end of the interpreter, connections are still served."""

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = serve(source)
    old = presented(server)
    clock.at += 31 * MINUTE
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert presented(server).der == old.der
    clock.at += contexts.RETRY
    assert presented(server).der != old.der


def test_short_lived_renewals_are_limited(clock: Clock) -> None:
    """A source whose certificates are old already is not asked for each connection."""
    old = Clock()
    source = Source(old)
    server = ra_tls.server_context(issued=source.issue(), now=clock)
    clock.at += 50 * MINUTE
    for _ in range(5):
        presented(server)
    assert source.renewals == 1


# -- threads --------------------------------------------------------------------------------------


def test_slow_renewal_does_not_delay_connections(
    clock: Clock, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a device is slow, connections get the old certificate; afterwards the new one."""
    monkeypatch.setattr(contexts, "PATIENCE", 0.01)
    server = serve(source)
    old = presented(server)
    source.proceed.clear()
    clock.at += 31 * MINUTE
    for _ in range(5):
        assert presented(server).der == old.der
    clock.at += HOUR  # expired: each waits, and gets what there is
    assert presented(server).der == old.der
    source.proceed.set()
    thread_of(server).join(TIMEOUT)
    assert presented(server).der != old.der
    assert source.renewals == 1


def test_renewal_may_connect_with_its_own_context(clock: Clock, source: Source) -> None:
    """A renewal that uses the context does not wait for itself."""
    contexts: list[ssl.SSLContext] = []

    def renew() -> ra_tls.Issued:
        presented(contexts[0])
        return source.renew()

    contexts.append(ra_tls.server_context(issued=source.issue()._replace(renew=renew), now=clock))
    clock.at += 2 * HOUR
    presented(contexts[0])
    thread_of(contexts[0]).join(TIMEOUT)
    assert source.renewals == 1


def test_renewals_beside_many_connections(
    clock: Clock, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection has a certificate and its own key, while the context changes all the time."""
    monkeypatch.setattr(contexts, "RETRY", 0.0)
    server = serve(source)

    def connect(_: int) -> bytes | None:
        clock.at += 31 * MINUTE
        return in_memory(server, tds.blind_context())

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(connect, range(64)))
    assert 1 < len(found) <= source.renewals + 1


def test_renewal_and_lock_of_the_parent_do_not_block_a_child(
    clock: Clock, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is forked during a renewal makes its own."""
    parent = os.getpid()

    def renew() -> ra_tls.Issued:
        return source.renew() if os.getpid() == parent else source.issue()

    server = ra_tls.server_context(issued=source.issue()._replace(renew=renew), now=clock)
    assert isinstance(server, RenewingContext)
    old = presented(server)
    clock.at += 31 * MINUTE
    source.proceed.clear()
    monkeypatch.setattr(contexts, "PATIENCE", 0.0)
    assert presented(server).der == old.der
    monkeypatch.setattr(contexts, "PATIENCE", float(TIMEOUT))

    def child() -> None:
        assert presented(server).der != old.der

    with server._lock:
        is_done = in_child(child)
    source.proceed.set()
    thread_of(server).join(TIMEOUT)
    assert is_done
    assert source.renewals == 1
