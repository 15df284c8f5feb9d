"""Simulated TDs and constants for guests."""

import json
import threading
from collections.abc import Callable
from typing import ClassVar, TypeAlias

from attestkit import Verifier
from attestkit.backends.simulator import Simulator
from attestkit.errors import QuoteUnavailableError
from attestkit.keys import AppKeys
from attestkit.serve.services.context import Guest
from tests.serve.asgi import Client
from tests.vectors import data

MakeGuest: TypeAlias = Callable[..., Guest]
GuestClient: TypeAlias = Callable[..., Client]
NOW = 1_800_000_000
SEED = bytes(32)
APP_KEYS = "dstack/simulator/appkeys.json"


class Broken(Simulator):
    """A TD without a quoting service."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Raise QuoteUnavailableError."""
        raise QuoteUnavailableError(
            f"no quoting service for {len(report_data)} bytes", reason="quoting_service"
        )


class Counting(Simulator):
    """A TD that counts its quotes."""

    quotes = 0

    def get_quote(self, report_data: bytes) -> bytes:
        """Count and return a quote."""
        self.quotes += 1
        return super().get_quote(report_data)


class Blocking(Simulator):
    """A TD that blocks like a device and records the threads that wait for it."""

    blocking = True

    threads: ClassVar[set[int]] = set()

    def get_quote(self, report_data: bytes) -> bytes:
        """Record the thread and return a quote."""
        self.threads.add(threading.get_ident())
        return super().get_quote(report_data)


def vector_keys(**changes: object) -> AppKeys:
    """Return the vectors' app keys, with changes to the members of their file."""
    return AppKeys.from_json(json.dumps(json.loads(data(APP_KEYS)) | changes))


def without_keys(guest: Guest) -> Guest:
    """Return a guest of the same TEE without app keys."""
    return Guest(
        guest.attester,
        app_compose=guest.app_compose,
        app_keys=None,
        now=guest.now,
        random=guest.random,
    )


def make_verifier(simulator: Simulator) -> Verifier:
    """Return a verifier that trusts a simulator."""
    collateral = simulator.collateral(NOW) if simulator.platform == "tdx" else None
    anchor = simulator.trust_anchor
    return Verifier(trust_anchor=anchor, collateral=collateral, policy="development")
