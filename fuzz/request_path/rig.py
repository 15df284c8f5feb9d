"""All listeners of a server in this process: bytes in, and what they promise checked.

The protocol and the applications are the server's own, over the simulator; only the socket, the
clock and the container engine are not there. An input is two bytes and what the client sends:

| byte | what it says |
|---|---|
| 0 | listener (modulo 6), how the client ends (next 3), whether it is slow (next 2) |
| 1 | bytes that arrive at a time, 0 for all at once |

It ends silent, with the end of its stream, or by a reset; a slow one takes no answer before.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from hashlib import sha256
from itertools import count
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from uvicorn.server import ServerState

from attestkit._crypto.ecdsa import P256Key
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import NotFoundError
from attestkit.keys import AppKeys
from attestkit.serve import listener_apps
from attestkit.serve.config.limits import Limits
from attestkit.serve.docker.engine import Container, ContainerEngine, ContainerLog
from attestkit.serve.http.asgi import App
from attestkit.serve.http.listener_state import ListenerConfig, ListenerState
from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.services.context import Guest
from attestkit.serve.services.device_queue import DeviceQueue
from attestkit.serve.services.pccs import PccsApp
from attestkit.serve.verifier_service.app import VerifierApp
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.verifier import Verifier
from fuzz.request_path.answers import BrokenPromiseError, check, read_answers
from fuzz.request_path.loop import InlineThreads, InstantLoop
from fuzz.request_path.oracle import Request, requests_in
from tests.untyped import untyped

__all__ = ["LISTENERS", "PLANTED", "Rig", "head"]

LISTENERS: Final = ("dstack", "tappd", "http", "dev_http", "verifier", "pccs")
PLANTED: Final = "ATTESTKIT_FUZZ_PLANTED"
"""Set, this variable makes certain requests for keys raise: a fuzzer must find them."""

_ENDS: Final = ("silent", "eof", "reset")
_NOW: Final = 1_800_000_000
# Small, so that every bound is within reach of a short input, and of little time.
_LIMITS: Final = Limits(
    body=1024,
    verifier_body=1024,
    head=512,
    headers=16,
    head_seconds=1.0,
    body_seconds=1.0,
    idle_seconds=1.0,
    write_seconds=1.0,
    stream_seconds=2.0,
)
_MOST_WAITS: Final = 200  # timers until the connection must be over
_COMPOSE: Final = (
    b'{"manifest_version":2,"name":"an app","runner":"docker-compose",'
    b'"public_logs":true,"public_sysinfo":true,"public_tcbinfo":true}'
)
# What no answer may hold: the app's root keys, of which only derived ones are given out.
_SECRETS: Final = tuple(sha256(b"secret %d" % number).digest() for number in range(4))


def head(listener: str, end: str = "eof", *, slow: bool = False, pieces: int = 0) -> bytes:
    """Return the two bytes before what the client sends."""
    first = LISTENERS.index(listener) + len(LISTENERS) * (_ENDS.index(end) + len(_ENDS) * slow)
    return bytes((first, pieces))


class _Plan(NamedTuple):
    """What an input says."""

    listener: str
    end: str
    slow: bool
    pieces: list[bytes]

    @classmethod
    def of(cls, data: bytes) -> "_Plan":
        first, size, sent = data[0], data[1], data[2:]
        first, listener = divmod(first, len(LISTENERS))
        slow, end = divmod(first, len(_ENDS))
        pieces = [sent[at : at + size] for at in range(0, len(sent), size)] if size else [sent]
        return cls(LISTENERS[listener], _ENDS[end], slow % 2 == 1, pieces)


class _Socket:
    """What is asked of the socket below a connection; there is never more to read."""

    def __init__(self) -> None:
        self._end, self._other = os.pipe()

    def fileno(self) -> int:
        return self._end

    @staticmethod
    def getpeername() -> tuple[str, int]:
        return ("192.0.2.7", 40_000)

    @staticmethod
    def getsockname() -> tuple[str, int]:
        return ("192.0.2.1", 8090)


class _Wire(asyncio.Transport):
    """The transport below a connection, which keeps what is sent; refuses what a real one would."""

    def __init__(self, loop: InstantLoop, sock: _Socket, *, slow: bool) -> None:
        self._loop, self._socket, self._slow = loop, sock, slow
        self.protocol: _Watched
        self.sent = b""
        self.is_paused = self.is_over = self.was_aborted = False
        self._closing = self._at_end = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._socket if name == "socket" else default

    def write(self, data: Any) -> None:
        if self._at_end:
            raise RuntimeError("write() behind write_eof()")
        if self._closing:
            return
        self.sent += data
        if self._slow and self.sent:
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if self.is_over:
            raise RuntimeError("write_eof() of a connection that is over")
        self._at_end = True

    def take_all(self) -> None:
        """Let the client take what was held back."""
        self._slow = False
        if not self.is_over:
            self.protocol.resume_writing()
            if self._closing:
                self._loop.call_soon(self.lose, None)

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return len(self.sent) if self._slow else 0

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self.get_write_buffer_size():
                self._loop.call_soon(self.lose, None)

    def abort(self) -> None:
        self.was_aborted = True
        self._closing = True
        self._loop.call_soon(self.lose, None)

    def lose(self, error: Exception | None) -> None:
        """End the connection, once."""
        if not self.is_over:
            self._closing = self.is_over = True
            self.protocol.connection_lost(error)


class _Watched(HttpProtocol):
    """A connection that notes the requests which it reads."""

    def __init__(self, config: ListenerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.methods: list[bytes] = []
        self.whole: list[Request] = []
        self._pieces: list[bytes] = []  # of a body
        self.pieces: list[bytes] = []  # of all bodies

    def on_url(self, url: bytes) -> None:
        if not self.url:
            self.methods.append(self.parser.get_method())
        super().on_url(url)

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self.pieces.append(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        body, self._pieces = b"".join(self._pieces), []
        self.whole.append(Request(self.parser.get_method(), self.url, body).plain())
        super().on_message_complete()


class _Engine(ContainerEngine):
    """A container engine with one container; its log says two lines, and then nothing more."""

    async def list_containers(self) -> list[Container]:
        return [Container("c0ffee", "an image", "running", "Up 2 hours", ("web",))]

    @asynccontextmanager
    async def open_log(
        self, name: str, parameters: Mapping[str, str], silence: float
    ) -> AsyncIterator[ContainerLog]:
        if name != "web":
            raise NotFoundError(f"No such container: {name}", reason="path")
        pieces = [b"\x01\0\0\0\0\0\0\x05one\r\n", b"\x02\0\0\0\0\0\0\x04\xfftwo", b""]

        async def read() -> bytes:
            if len(pieces) == 1 and parameters.get("follow") in {"1", "true"}:
                await asyncio.sleep(silence)
            return pieces.pop(0) if len(pieces) > 1 else b""

        yield untyped(SimpleNamespace(terminal=False, read=read))


class _Complaints(logging.Handler):
    """Keeps what the log would call an error: something nobody reckoned with."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.texts.append(f"{record.getMessage()} {error!r}")


@dataclass
class Rig:
    """Every listener, ready; `run` gives a connection to one of them."""

    loop: InstantLoop = field(default_factory=InstantLoop)

    def __post_init__(self) -> None:
        """Boot the simulated TD, and make the applications."""
        self._socket = _Socket()
        self._complaints = _Complaints()
        logging.getLogger().addHandler(self._complaints)
        with self.loop.current():
            self._guest = self._make_guest()
            made = self._make_apps()
            self.apps = {name: made[name] for name in LISTENERS}
            self._configs = {name: self._config(name, app) for name, app in self.apps.items()}

    def close(self) -> None:
        """End what was made."""
        logging.getLogger().removeHandler(self._complaints)
        self._guest.close()
        self._guest.attester.close()

    def run(self, data: bytes) -> bool:
        """Give a connection what a client sends; tell whether the guest is as it was before.

        Raises:
            BrokenPromiseError: Something that is promised to every client did not hold.
        """
        if len(data) < 3:
            return True
        plan = _Plan.of(data)
        self.loop.forget()
        self._complaints.texts.clear()
        self._numbers = count()
        with self.loop.current():
            wire = self._connect(plan)
            self._play(plan, wire)
            self._wait(wire)
        self._check(plan, wire)
        emitted = self._guest.stats.of(plan.listener).requests.pop(("EmitEvent", 200), 0)
        return not emitted

    # -- what a server is made of --------------------------------------------------------------

    def _make_guest(self) -> Guest:
        k256, ca, env, disk = _SECRETS
        keys = AppKeys(
            k256_key=k256,
            ca_cert=None,
            ca_key=P256Key.from_scalar(ca),
            env_crypt_key=env,
            disk_crypt_key=disk,
        )
        simulator = Simulator(seed=bytes(32), app_compose=_COMPOSE, app_keys=keys, now=lambda: _NOW)
        tee = Attester(simulator)
        guest = Guest(
            tee,
            app_compose=tee.app_compose,
            app_keys=keys,
            now=lambda: _NOW,
            random=self._random,
            limits=_LIMITS,
        )
        guest.containers = _Engine()
        guest._device = DeviceQueue(_LIMITS.connections, InlineThreads())
        return guest

    def _random(self, size: int) -> bytes:
        """Return bytes that are the same in every run of an input, and no more than once in it."""
        number = next(getattr(self, "_numbers", count()))
        return sha256(b"random %d" % number).digest()[:size].ljust(size, b"\7")

    def _make_apps(self) -> dict[str, App]:
        guest = self._guest
        simulator = guest.attester.backend
        assert isinstance(simulator, Simulator)
        verifier = Verifier(
            trust_anchor=simulator.trust_anchor,
            collateral=simulator.collateral(_NOW),
            policy=AppraisalPolicy.development(),
            clock=lambda: datetime.fromtimestamp(_NOW, timezone.utc),
        )
        inline = InlineThreads()
        judge = VerifierApp(verifier, inline, inline, limits=_LIMITS, random=self._random)
        dstack = listener_apps.dstack_app(guest)
        if os.environ.get(PLANTED):
            _plant(dstack)
        return {
            "dstack": dstack,
            "tappd": listener_apps.tappd_app(guest),
            "http": listener_apps.external_app(guest),
            "dev_http": listener_apps.dev_app(guest),
            "verifier": judge,
            "pccs": listener_apps.collateral_app(guest),
        }

    def _config(self, name: str, app: App) -> ListenerConfig:
        shared = ListenerState.of(name, _LIMITS, self._guest.stats.of(name), None)
        config = ListenerConfig(app, shared, HttpProtocol)
        config.load()
        return config

    # -- a connection --------------------------------------------------------------------------

    def _connect(self, plan: _Plan) -> _Wire:
        state, config = ServerState(), self._configs[plan.listener]
        # A sweep's timer is of the last run, whose loop has forgotten it.
        config.shared = ListenerState.of(*config.shared[:4])
        wire = _Wire(self.loop, self._socket, slow=plan.slow)
        wire.protocol = _Watched(config, state, {}, _loop=self.loop)
        wire.protocol.connection_made(wire)
        return wire

    def _play(self, plan: _Plan, wire: _Wire) -> None:
        """Send what the client sends, piece by piece, and end as it does."""
        for piece in plan.pieces:
            if wire.is_closing() or wire.is_paused:
                break
            wire.protocol.data_received(piece)
            self.loop.rest()
        if wire.is_over:
            return
        if plan.end == "reset":
            wire.lose(ConnectionResetError())
        elif plan.end == "eof" and not wire.is_paused and not wire.protocol.eof_received():
            wire.close()
        wire.take_all()
        self.loop.rest()

    def _wait(self, wire: _Wire) -> None:
        """Let time pass until the server has ended the connection."""
        for _ in range(_MOST_WAITS):
            if wire.is_over or not self.loop.skip():
                break
        self.loop.rest()

    def _check(self, plan: _Plan, wire: _Wire) -> None:
        protocol = wire.protocol
        left = [repr(task) for task in self.loop.tasks if not task.done()]
        app = self.apps[plan.listener]
        counts = isinstance(app, RpcApp | VerifierApp | PccsApp) and app._bodies.held
        held = counts or (isinstance(app, RpcApp) and app._endless)
        problems = {
            "the connection is never ended": not wire.is_over,
            "tasks are left over": left,
            "bytes or streams are counted that are no more": held,
            "the listener still knows the connection": protocol.connections or protocol.tasks,
            "connections are counted that are no more": self._guest.stats.of(
                plan.listener
            ).connections,
            "nobody took an error": self.loop.problems,
            "something that nobody reckoned with": self._complaints.texts,
        }
        for problem, found in problems.items():
            if found:
                raise BrokenPromiseError(f"{problem}: {found}")
        sent = b"".join(plan.pieces)
        if protocol.whole != requests_in(sent)[: len(protocol.whole)]:
            raise BrokenPromiseError(f"{protocol.whole} are not the requests that were sent")
        if any(piece not in sent for piece in protocol.pieces):
            raise BrokenPromiseError(f"{protocol.pieces} are not what was sent as bodies")
        if plan.end == "reset" or wire.was_aborted:
            return
        answers = read_answers(wire.sent, protocol.methods, ended=True)
        check(plan.listener, sent, answers, _SECRETS)
        if len(answers) > len(protocol.methods) + 1:
            raise BrokenPromiseError(f"{len(answers)} answers for {len(protocol.methods)} requests")
        # Who follows a log and says no more is taken to have gone, with all that was asked behind.
        gone = plan.end == "eof" and answers and answers[-1].is_cut
        unanswered = len(answers) < len(protocol.whole) and not gone
        if unanswered and not (answers and answers[-1].is_last):
            raise BrokenPromiseError(
                f"{len(answers)} answers for {len(protocol.whole)} whole requests"
            )


def _plant(app: RpcApp) -> None:
    """Make GetKey raise for a path of several characters."""
    call = app._routes[b"/GetKey"]
    run = partial(_planted, call.method.run)
    app._routes[b"/GetKey"] = call._replace(method=call.method._replace(run=run))


def _planted(run: Callable[[Guest, Any], object], guest: Guest, args: Any) -> object:
    if len(args.path) > 1:
        raise KeyError(args.path)
    return run(guest, args)
