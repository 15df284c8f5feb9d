"""Steps that hypothesis takes with a server and its clients, in any order and several at once.

What must hold is said once, in `linearizable`: every answer is that of a TD whose log is a list.
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

__all__ = ["CLIENTS", "TdModel", "model", "run"]

CLIENTS = 4
ANYBODY = st.integers(0, CLIENTS - 1)
_PAYLOADS = st.sampled_from(["", "00", "c0ffee", "61" * 300])


def run(
    model: type[RuleBasedStateMachine], examples: int, steps: int, *, shrink: bool = True
) -> None:
    """Take so many sequences of so many steps; the same ones each time, unless for long.

    One that fails is made smaller, which takes hundreds of runs, if `shrink`.
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
    """Return a model with values of its own; hypothesis makes the objects."""
    return type(base.__name__, (base,), values)


class TdModel(RuleBasedStateMachine):
    """Clients of a server on one socket; subclasses run the server, and have steps of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.history = History()
        self.path = self.start()
        self.clients = [Client(self.path, self.history) for _ in range(CLIENTS)]
        try:
            self.booted = self.look()
        except BaseException:
            self.stop()  # nobody else would
            raise
        self.history.calls.clear()
        self._names = 0

    # -- what subclasses say -----------------------------------------------------------------------

    def start(self) -> str:
        """Run the server; return the path of its socket."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it."""
        raise NotImplementedError

    # -- steps -------------------------------------------------------------------------------------

    def new_name(self) -> str:
        """Return the name of an event that was never there."""
        self._names += 1
        return f"event {self._names}"

    def idle(self, first: int) -> Client | None:
        """Return the first client from this one on that has no request in flight."""
        order = [*self.clients[first:], *self.clients[:first]]
        return next((client for client in order if not client.waiting), None)

    def busy(self, first: int) -> Client | None:
        """Return the first client from this one on that has a request in flight."""
        order = [*self.clients[first:], *self.clients[:first]]
        return next((client for client in order if client.waiting), None)

    @rule(who=ANYBODY, payload=_PAYLOADS)
    def send_emit(self, who: int, payload: str) -> None:
        """Ask for an event, and do not wait."""
        if client := self.idle(who):
            client.send("EmitEvent", event=self.new_name(), payload=payload)

    @rule(who=ANYBODY, size=st.sampled_from([1, 32, 64]))
    def send_quote(self, who: int, size: int) -> None:
        """Ask for a quote, and do not wait."""
        if client := self.idle(who):
            client.send("GetQuote", report_data=f"{self.history.tick() % 256:02x}" * size)

    @rule(who=ANYBODY)
    def send_info(self, who: int) -> None:
        """Ask who the app is, which shows registers and log, and do not wait."""
        if client := self.idle(who):
            client.send("Info")

    @rule(who=ANYBODY)
    def receive(self, who: int) -> None:
        """Take an answer, not always that of whoever asked first."""
        if client := self.busy(who):
            client.receive()

    @rule(who=ANYBODY)
    def hang_up(self, who: int) -> None:
        """Go without waiting for the answer."""
        if client := self.busy(who):
            client.hang_up()

    @precondition(lambda self: any(client.waiting for client in self.clients))
    @rule()
    def receive_all(self) -> None:
        """Take all answers."""
        for client in self.clients:
            if client.waiting:
                client.receive()

    # -- the end -----------------------------------------------------------------------------------

    def look(self) -> Log:
        """Return the events in a quote now."""
        client = Client(self.path, self.history)
        client.send("GetQuote", report_data="aa")
        client.receive()
        client.close()
        seen = self.history.calls[-1]
        assert seen.what == "saw"
        return seen.names

    def teardown(self) -> None:
        """Look once more, and check all that was seen."""
        try:
            if hasattr(self, "booted"):
                self.receive_all()
                self.look()
                self.history.check(self.booted)
        finally:
            for client in self.clients:
                client.close()
            self.stop()
