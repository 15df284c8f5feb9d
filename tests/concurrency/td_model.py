"""A hypothesis state machine of a server and its concurrent clients.

The invariant is in `linearizable`: every response is that of a TD whose log is a list.
"""

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.concurrency.clients import Client, History
from tests.concurrency.linearizable import Log

CLIENTS = 4
CLIENT_NUMBERS = st.integers(0, CLIENTS - 1)
_PAYLOADS = st.sampled_from(["", "00", "c0ffee", "61" * 300])


def run(
    model: type[RuleBasedStateMachine], examples: int, steps: int, *, shrink: bool = True
) -> None:
    """Run `examples` sequences of `steps` steps, deterministically by default.

    `shrink` minimizes a failing sequence, which takes hundreds of runs.
    """
    long = os.environ.get("ATTESTKIT_EXAMPLES")
    chosen = settings(
        max_examples=int(long or examples),
        stateful_step_count=steps,
        derandomize=not long,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        print_blob=True,
    )
    run_state_machine_as_test(model, settings=chosen)


def model(base: "type[TdModel]", **values: object) -> type[Any]:
    """Return a model class with these attributes; hypothesis creates the instances."""
    return type(base.__name__, (base,), values)


class TdModel(RuleBasedStateMachine):
    """Clients of a server on one socket; subclasses run the server and add steps."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.path = self.start()
        self.clients = [Client(self.path, self.history) for _ in range(CLIENTS)]
        try:
            self.booted = self.get_events()
        except BaseException:
            self.stop()  # no other code would stop it
            raise
        self.history.calls.clear()
        self._names = 0

    # -- implemented by subclasses -----------------------------------------------------------------

    def start(self) -> str:
        """Run the server; return the path of its socket."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop the server."""
        raise NotImplementedError

    # -- steps -------------------------------------------------------------------------------------

    def new_name(self) -> str:
        """Return a new event name."""
        self._names += 1
        return f"event {self._names}"

    def idle(self, first: int) -> Client | None:
        """Return the first client, starting with this one, without a request in flight."""
        order = [*self.clients[first:], *self.clients[:first]]
        return next((client for client in order if not client.waiting), None)

    def busy(self, first: int) -> Client | None:
        """Return the first client, starting with this one, with a request in flight."""
        order = [*self.clients[first:], *self.clients[:first]]
        return next((client for client in order if client.waiting), None)

    @rule(number=CLIENT_NUMBERS, payload=_PAYLOADS)
    def send_emit(self, number: int, payload: str) -> None:
        """Send an EmitEvent request."""
        if client := self.idle(number):
            client.send("EmitEvent", event=self.new_name(), payload=payload)

    @rule(number=CLIENT_NUMBERS, size=st.sampled_from([1, 32, 64]))
    def send_quote(self, number: int, size: int) -> None:
        """Send a GetQuote request."""
        if client := self.idle(number):
            client.send("GetQuote", report_data=f"{self.history.tick() % 256:02x}" * size)

    @rule(number=CLIENT_NUMBERS)
    def send_info(self, number: int) -> None:
        """Send an Info request, whose response has registers and log."""
        if client := self.idle(number):
            client.send("Info")

    @rule(number=CLIENT_NUMBERS)
    def receive(self, number: int) -> None:
        """Receive a response, not necessarily of the oldest request."""
        if client := self.busy(number):
            client.receive()

    @rule(number=CLIENT_NUMBERS)
    def hang_up(self, number: int) -> None:
        """Close a connection without receiving its response."""
        if client := self.busy(number):
            client.hang_up()

    @precondition(lambda self: any(client.waiting for client in self.clients))
    @rule()
    def receive_all(self) -> None:
        """Receive all responses."""
        for client in self.clients:
            if client.waiting:
                client.receive()

    # -- the end -----------------------------------------------------------------------------------

    def get_events(self) -> Log:
        """Return the events of a quote."""
        client = Client(self.path, self.history)
        client.send("GetQuote", report_data="aa")
        client.receive()
        client.close()
        seen = self.history.calls[-1]
        assert seen.what == "saw"
        return seen.names

    def teardown(self) -> None:
        """Get a last quote, and check the history."""
        try:
            if hasattr(self, "booted"):
                self.receive_all()
                self.get_events()
                self.history.check(self.booted)
        finally:
            for client in self.clients:
                client.close()
            self.stop()
