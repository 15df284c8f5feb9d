"""A fake Verifier whose verification steps have configurable outcomes."""

from datetime import datetime, timezone
from functools import cache
from types import EllipsisType
from typing import TYPE_CHECKING

from attestkit.attestation import AppInfo, Attestation
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.claims import Authenticated, Claims, Tcb, TcbStatus
from attestkit.verifier.evidence.checks import ExpectedReportData
from attestkit.verifier.os_image import VerifiedImage
from attestkit.verifier.platforms.tdx import FetchNeededError
from attestkit.verifier.result import AttestationResult, create_result
from tests.serve.guests import NOW, SEED

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = ("authenticate", "replay", "image_hash", "app_info", "appraise")
IMAGE = b"\x1d" * 32
POLICY = AppraisalPolicy.development()


@cache
def create_evidence(report_data: bytes = b"nonce") -> Attestation:
    """Return evidence of the simulated TD."""
    with Attester(Simulator(seed=SEED)) as tee:
        return tee.attest(report_data=report_data, pad=True)


def create_authenticated(status: TcbStatus | None = TcbStatus.OUT_OF_DATE) -> Authenticated:
    """Return the result of the step `authenticate`."""
    return Authenticated(
        create_evidence().report_data, tcb=Tcb(status=status), advisory_ids=("INTEL-SA-1",)
    )


def create_attestation_result(
    *, simulated: bool = False, nonce: bytes | None = None, report_data: bytes | None = None
) -> AttestationResult:
    """Return the result of evidence that passed."""
    expected = ExpectedReportData.of(nonce, ... if nonce is not None else report_data)
    return create_result(
        claims=Claims("dstack-tdx", create_evidence().report_data, (), (), (), (), IMAGE),
        advisory_ids=(),
        tcb=Tcb(status=TcbStatus.OUT_OF_DATE),
        simulated=simulated,
        bound_to=expected.bound_to,
        nonce=nonce,
        app_info=None,
        verified_at=datetime.fromtimestamp(NOW, timezone.utc),
        certificate_chain=(),
        policy=POLICY,
        steps=(),
    )


class FakeVerifier:
    """A Verifier whose steps succeed, except for those with a given outcome.

    An outcome is a value to return, or an exception to raise. `taken` lists the executed steps.
    """

    def __init__(self, **outcomes: object) -> None:
        self.outcomes = outcomes
        self.policy = POLICY
        self.taken: list[str] = []
        self.opened: list[Attestation] = []
        self.fetches = False  # whether collateral must be fetched
        self.before: Callable[[], object] = lambda: None  # called first by each examine()

    def examine(self, attestation: Attestation, *, fetch: bool = True) -> "FakeVerifier":
        """Record the evidence; raise FetchNeededError if a fetch is needed but not allowed."""
        self.before()
        if self.fetches and not fetch:
            raise FetchNeededError("not here", reason="fetch_needed")
        self.opened.append(attestation)
        return self

    def _outcome(self, name: str, usual: object) -> object:
        self.taken.append(name)
        found = self.outcomes.get(name, usual)
        if isinstance(found, BaseException):
            raise found
        return found

    def authenticate(self) -> object:
        """Return the outcome of this step."""
        return self._outcome("authenticate", create_authenticated())

    def replay(self) -> object:
        """Return the outcome of this step."""
        return self._outcome("replay", None)

    def image_hash(self) -> object:
        """Return the outcome of this step."""
        return self._outcome("image_hash", IMAGE)

    @property
    def os_image(self) -> VerifiedImage:
        """Return the verified image."""
        return VerifiedImage(IMAGE)

    def app_info(self) -> object:
        """Return the outcome of this step."""
        info: AppInfo = self.opened[-1].app_info
        return self._outcome("app_info", info)

    def appraise(
        self, *, nonce: bytes | None = None, report_data: bytes | EllipsisType | None = ...
    ) -> object:
        """Return the outcome of this step."""
        assert (nonce is None) != (report_data is ...)
        given = None if report_data is ... else report_data
        result = create_attestation_result(nonce=nonce, report_data=given)
        return self._outcome("appraise", result)
