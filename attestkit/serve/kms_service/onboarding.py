"""Onboarding of the simulated KMS over plain HTTP, while it has no keys (kms.md, section 1.7).

Anyone who reaches the listener can create the keys, or have them taken over from another KMS; it
releases none. Web pages of other sites are refused: they could have it take over their own keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Final

from attestkit.errors import AttestKitError, UsageError
from attestkit.kms.answers import BootstrapStatement
from attestkit.kms.release.boot_info import verify_guest
from attestkit.kms.release.certificates import check_domain
from attestkit.kms.release.key_release import bootstrap_report_data
from attestkit.kms.release.roots import KmsRoots
from attestkit.kms.release.state_folder import KmsState, KmsStateFolder, create_state
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import CONTENT_TYPE, Traffic
from attestkit.serve.http.views import View, ViewRequest, ViewResponse
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.kms_service.app import make_rpc_app, refuse_web_pages
from attestkit.serve.kms_service.errors import KmsFailureError, KmsRefusalError, refusal
from attestkit.serve.kms_service.kms_parts import KmsParts
from attestkit.serve.kms_service.request_queue import RequestQueue, queued
from attestkit.serve.kms_service.take_over import take_over_roots
from attestkit.serve.rpc import messages_kms as m
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.rpc.service import Method, Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestkit.attester import Attester

_HTML: Final = b"text/html; charset=utf-8"
_PAGE: Final = (
    b"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Simulated KMS: setup</title>"
    b"<h1>Simulated KMS: setup</h1><p>This KMS has no keys. Create them with "
    b"<code>/prpc/Onboard.Bootstrap</code>, or take over those of another KMS with "
    b"<code>/prpc/Onboard.Onboard</code>; then open <a href=/finish>/finish</a>. It is a "
    b"simulation: its keys protect nothing.</p></html>\n"
)


class Onboarding(RequestQueue):
    """Creation of the keys of a KMS, once; context of the methods.

    Args:
        folder: Stores the keys; None: in memory.
        parts: What else the KMS consists of.
        threads: Threads of the requests.

    Attributes:
        state: The keys, once they exist.
        finish: Called in the event loop when the setup is finished.
    """

    def __init__(self, folder: KmsStateFolder | None, parts: KmsParts, threads: JobThreads) -> None:
        super().__init__(threads)
        self.state: KmsState | None = None
        self.finish: Callable[[], None] = lambda: None
        self._folder, self._parts = folder, parts
        self._lock = Lock()

    def bootstrap(self, domain: str) -> m.BootstrapResponse:
        """Create new keys."""
        with self._creating("bootstrapped"):
            _check_domain(domain)
            roots = KmsRoots.generate()
            info = BootstrapStatement(roots.ca_spki, roots.k256_public_key, b"")
            if self._parts.attester is not None:
                bound = bootstrap_report_data(info.ca_spki, info.k256_public_key)
                info = info._replace(attestation=self._attest(bound))
            state = create_state(roots, domain, self._now())
            self._keep(state._replace(bootstrap_info=info))
            return m.BootstrapResponse(*info)

    def onboard(self, source_url: str, domain: str) -> m.OnboardResponse:
        """Take over the keys of another KMS."""
        with self._creating("onboarded"):
            _check_domain(domain)
            attester = self._require_attester()
            try:
                roots = take_over_roots(source_url, attester, self._parts)
            except AttestKitError as error:
                # Also a failure of the other KMS, which this caller has named.
                raise KmsRefusalError(f"Failed to onboard: {error}") from error
            # The evidence of the first KMS is not that of this one.
            self._keep(create_state(roots, domain, self._now())._replace(bootstrap_info=None))
            return m.OnboardResponse(roots.k256_public_key)

    @contextmanager
    def _creating(self, done: str) -> Iterator[None]:
        """Refuse a call if there are keys, or while another call creates them.

        Waiting calls would fill the threads: a source that a caller names can take a minute.
        """
        if not self._lock.acquire(blocking=False):
            raise KmsRefusalError("KMS is being set up by another request; retry when it has ended")
        try:
            if self.state is not None:
                raise KmsRefusalError(f"KMS has already been {done}")
            yield
        finally:
            self._lock.release()

    def describe(self) -> m.AttestationInfoResponse:
        """Return the identity of this KMS in its own evidence."""
        report_data = bytes(64)
        try:
            guest = verify_guest(
                self._parts.verifier,
                self._require_attester().attest(report_data=report_data),
                report_data=report_data,
                ca_spki=None,
                use_claimed_image=self._parts.use_claimed_image,
                now=self._parts.now(),
            )
        except AttestKitError as error:
            raise KmsFailureError(str(error)) from error
        boot = guest.boot_info
        return m.AttestationInfoResponse(
            device_id=boot.device_id,
            mr_aggregated=boot.mr_aggregated,
            os_image_hash=boot.os_image_hash,
            tee_variant=boot.tee_variant,
            ppid=guest.ppid,
        )

    def _now(self) -> int:
        return int(self._parts.now())

    def _attest(self, report_data: bytes) -> bytes:
        try:
            return self._require_attester().attest(report_data=report_data).to_bytes()
        except AttestKitError as error:
            raise refusal(error, is_own=True) from error

    def _require_attester(self) -> "Attester":
        if self._parts.attester is None:
            raise KmsFailureError("simulated KMS: has no TEE to attest it; pass an attester")
        return self._parts.attester

    def _keep(self, state: KmsState) -> None:
        if self._folder is not None:
            self._folder.store(state, self._now())
        self.state = state


def _check_domain(domain: str) -> None:
    try:
        check_domain(domain)
    except UsageError as error:
        raise KmsRefusalError("domain contains an invalid DNS label") from error


async def finish(setup: Onboarding, _: None) -> None:
    """Finish the setup: the KMS then serves HTTPS on this address."""
    _finish(setup)


SERVICE: Final = Service(
    {
        "Bootstrap": queued(Onboarding.bootstrap, m.BootstrapRequest, post_only=True),
        "Onboard": queued(Onboarding.onboard, m.OnboardRequest, post_only=True),
        "GetAttestationInfo": queued(Onboarding.describe),
        "Finish": Method(finish, waits=True),
    },
    mount="/prpc/",
    prefix="Onboard.",
    name="Onboard",
    package=m.PACKAGE,
)
"""The service while the KMS has no keys."""


def make_onboarding_app(setup: Onboarding, limits: Limits, traffic: Traffic) -> RpcApp:
    """Return the application of the listener while the KMS has no keys."""
    app = make_rpc_app("kms-setup", setup, SERVICE, limits, traffic)
    app.guard = refuse_web_pages
    app.views = {"/": View(_show_page), "/finish": View(_finish_by_page)}
    return app


async def _show_page(_: Onboarding, __: ViewRequest) -> ViewResponse:
    return ViewResponse(_HTML, _PAGE)


async def _finish_by_page(setup: Onboarding, _: ViewRequest) -> ViewResponse:
    _finish(setup)
    return ViewResponse(CONTENT_TYPE, b"OK")


def _finish(setup: Onboarding) -> None:
    """Finish the setup, once there are keys."""
    if setup.state is None:
        raise KmsRefusalError("KMS has no keys; call Onboard.Bootstrap or Onboard.Onboard first")
    setup.finish()
