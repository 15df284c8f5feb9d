"""Stand-ins for a Verifier, so that each of its steps can go as a test wants it."""

from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING

from attestkit.attestation import AppInfo, Attestation
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.verifier.dcap.fetch_and_retry import FetchNeededError
from attestkit.verifier.result import (
    AttestationResult,
    Authenticated,
    Claims,
    Tcb,
    TcbStatus,
    Verdict,
    accepted,
)
from tests.serve.guests import NOW, SEED

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = ("authenticate", "replay", "image_hash", "app_info", "appraise")
IMAGE = b"\x1d" * 32


@cache
def evidence(report_data: bytes = b"nonce") -> Attestation:
    """Return evidence of the simulated TD."""
    with Attester(Simulator(seed=SEED)) as tee:
        return tee.attest(report_data)


def authenticated(status: TcbStatus | None = TcbStatus.OUT_OF_DATE) -> Authenticated:
    """Return what a maker's word would be."""
    return Authenticated(status, ("INTEL-SA-1",), evidence().report_data, b"", Tcb(), (), ())


def result(*, simulated: bool = False) -> AttestationResult:
    """Return the result of evidence that passed."""
    return accepted(
        Verdict(
            claims=Claims("dstack-tdx", evidence().report_data, (), (), (), (), IMAGE),
            tcb_status=TcbStatus.OUT_OF_DATE,
            advisory_ids=(),
            tcb=Tcb(),
            simulated=simulated,
            app_info=None,
            verified_at=datetime.fromtimestamp(NOW, timezone.utc),
            certificate_chain=(),
            steps=(),
        )
    )


class StandIn:
    """Takes every step with success, but for those whose outcome it was given.

    An outcome is a value to return, or an exception to raise. `taken` are the steps in order.
    """

    def __init__(self, **outcomes: object) -> None:
        self.outcomes = outcomes
        self.taken: list[str] = []
        self.opened: list[Attestation] = []
        self.fetches = False  # whether collateral has to be fetched
        self.before: Callable[[], object] = lambda: None  # runs first in every examination

    def examine(self, attestation: Attestation, *, fetch: bool = True) -> "StandIn":
        """Open evidence."""
        self.before()
        if self.fetches and not fetch:
            raise FetchNeededError("not here")
        self.opened.append(attestation)
        return self

    def _outcome(self, name: str, usual: object) -> object:
        self.taken.append(name)
        found = self.outcomes.get(name, usual)
        if isinstance(found, BaseException):
            raise found
        return found

    def authenticate(self) -> object:
        """Pass."""
        return self._outcome("authenticate", authenticated())

    def replay(self) -> object:
        """Pass."""
        return self._outcome("replay", None)

    def image_hash(self) -> object:
        """Pass."""
        return self._outcome("image_hash", IMAGE)

    def app_info(self) -> object:
        """Pass."""
        info: AppInfo = self.opened[-1].app_info()
        return self._outcome("app_info", info)

    def appraise(self, report_data: bytes | None) -> object:
        """Pass."""
        assert report_data is None
        return self._outcome("appraise", result())
