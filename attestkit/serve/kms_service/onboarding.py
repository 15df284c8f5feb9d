"""Onboarding of the simulated KMS over plain HTTP, while it has no keys.

Any client of the listener can have keys created, or copied from another KMS; the listener releases
none. Web pages of other sites are refused: they could have keys of their own copied to this KMS.
For a copy, each KMS verifies the other's evidence, and its own authorization decides about it.
"""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._formats import strict_json
from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.keys.hkdf import derive_p256
from attestkit.kms.answers import BootstrapStatement
from attestkit.kms.https_call import (
    AttestedKey,
    ClientCa,
    TimeLimits,
    anonymous_context,
    call_kms,
    rooted_context,
)
from attestkit.kms.release.authorization import authorize_guest, verify_guest
from attestkit.kms.release.certificates import check_domain
from attestkit.kms.release.roots import KmsRoots, bootstrap_report_data
from attestkit.kms.release.state_folder import KmsState, KmsStateFolder, create_state
from attestkit.kms.tls_chain import check_usage
from attestkit.kms.url import KmsUrl, parse_kms_url
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import CONTENT_TYPE, Traffic
from attestkit.serve.http.views import View, ViewRequest, ViewResponse
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.kms_service.app import make_rpc_app, refuse_web_pages
from attestkit.serve.kms_service.client_evidence import read_client_evidence
from attestkit.serve.kms_service.errors import KmsFailureError, KmsRefusalError, refusal
from attestkit.serve.kms_service.request_queue import RequestQueue, queued
from attestkit.serve.kms_service.server_identity import KmsParts
from attestkit.serve.rpc import messages_kms as m
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.rpc.service import Method, Service

if TYPE_CHECKING:
    from attestkit.attester import Attester

_K256_SIZE: Final = 32
_LIMITS: Final = TimeLimits(connect=5.0, call=30.0)  # seconds


def take_over_roots(source_url: str, attester: "Attester", parts: KmsParts) -> KmsRoots:
    """Return the root keys of another, running KMS, with a new TLS key.

    Args:
        source_url: URL of the running KMS, which keeps its keys.
        attester: Produces the evidence of this KMS, which the running KMS verifies.
        parts: Their verifier and authorization decide about the running KMS.

    Raises:
        AttestKitError: If the URL is not valid, the running KMS is not accepted, refuses or fails,
            or its answer is malformed. The text has no key.
    """
    url = parse_kms_url(source_url)
    answer = call_kms(url, "GetTempCaCert", {}, anonymous_context(), limits=_LIMITS)
    temp_ca = ClientCa.from_json(answer)
    root = temp_ca.root.spki_der
    issued = AttestedKey(attester.attest).certify(temp_ca, parts.now())

    def check_source(certificate: bytes) -> None:
        check_usage(certificate)
        _check_evidence(url, certificate, root, parts)

    context = rooted_context(temp_ca.root, issued)
    arguments = {"vm_config": ""}
    received = call_kms(
        url, "GetKmsKey", arguments, context, limits=_LIMITS, check_server=check_source
    )
    return read_roots(received, root, derive_p256(os.urandom(32)))


def _check_evidence(url: KmsUrl, certificate: bytes, root: bytes, parts: KmsParts) -> None:
    """Verify and authorize the evidence in the certificate (DER) of a running KMS.

    `root` is the public key of its root CA, SubjectPublicKeyInfo in DER.
    """
    start = f"failed to validate the server attestation of {url.base}: "
    found = read_client_evidence(ssl.DER_cert_to_PEM_cert(certificate))
    if found is None:
        raise KmsRefusalError(f"{start}Source KMS certificate does not contain attestation")
    try:
        decision = authorize_guest(
            parts.verifier,
            parts.authorization,
            "kms",
            found.attestation,
            report_data=found.report_data,
            ca_spki=root,
            use_claimed_image=parts.use_claimed_image,
            now=parts.now(),
        )[1]
    except AttestKitError as error:
        raise KmsRefusalError(f"{start}{error}") from error
    if not decision.is_allowed:
        raise KmsRefusalError(f"{start}Boot denied: {decision.reason}")


def read_roots(data: bytes, root: bytes, rpc_key: P256Key) -> KmsRoots:
    """Return the root keys in the answer of another KMS, the source, to GetKmsKey.

    Args:
        data: JSON text of the source's answer.
        root: SubjectPublicKeyInfo (DER) of the root CA in the source's answer to GetTempCaCert.
        rpc_key: TLS key of this KMS.

    Raises:
        FormatError: If the answer is malformed, has not exactly one entry of keys, or its CA key is
            not that of `root`. The text has no key.
        UsageError: If the secp256k1 key is not a scalar.
    """
    fields = strict_json.read_object(data, "GetKmsKey response")
    entries = fields.get("keys")
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        message = "GetKmsKey response: keys: must have exactly one entry"
        raise FormatError(message, reason="wrong_size")
    entry: dict[str, Any] = entries[0]
    ca_key = _read_key(entry, "ca_key")
    if ca_key.spki_der != root:
        message = "GetKmsKey response: ca_key: must be the key of the source's root CA"
        raise FormatError(message, reason="wrong_value")
    return KmsRoots(
        ca_key=ca_key,
        k256_secret=strict_json.from_hex(entry.get("k256_key"), "k256_key", _K256_SIZE),
        temp_ca_key=_read_key(fields, "temp_ca_key"),
        rpc_key=rpc_key,
    )


def _read_key(fields: dict[str, Any], name: str) -> P256Key:
    try:
        return P256Key.from_pem(strict_json.string(fields, name))
    except FormatError:
        message = f"GetKmsKey response: {name}: must be a P-256 key in PEM"
        raise FormatError(message, reason="syntax") from None  # the cause may contain the key


_HTML: Final = b"text/html; charset=utf-8"
_PAGE: Final = (
    b"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Simulated KMS: setup</title>"
    b"<h1>Simulated KMS: setup</h1><p>This KMS has no keys. Create them with "
    b"<code>/prpc/Onboard.Bootstrap</code>, or take over those of another KMS with "
    b"<code>/prpc/Onboard.Onboard</code>; then open <a href=/finish>/finish</a>. It is a "
    b"simulation: its keys protect nothing.</p></html>\n"
)


class Onboarding(RequestQueue):
    """Setup of a KMS without keys, which creates or copies them once; context of the methods.

    Args:
        folder: Stores the keys; None: in memory.
        parts: Verifier, authorization and settings of the KMS.
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
        """Create and store new root keys and certificates, with `domain` in the KMS's certificate.

        Returns the public keys, with evidence over them if the KMS has an attester.

        Raises:
            KmsRefusalError: If this KMS has keys or is being set up, or `domain` is invalid.
            KmsFailureError: If the attester returns no evidence because its platform failed.
            ConfigError: If the keys cannot be stored.
        """
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
        """Copy the root keys of the KMS at `source_url`, which keeps them, to this KMS.

        The keys are stored with new certificates: that of this KMS has `domain`, a DNS name or IP
        address, and a new TLS key. Returns the public secp256k1 root key.

        Raises:
            KmsRefusalError: If this KMS has keys or is being set up, `domain` is invalid, or either
                KMS rejects the other.
            KmsFailureError: If this KMS has no attester.
            ConfigError: If the keys cannot be stored.
        """
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
        """Context manager: let one call create the keys; raise if keys exist, or during another.

        `done` names the call in the error, as "onboarded". A call does not wait for another one,
        because waiting calls would fill the threads: a source that a caller names can take a
        minute.
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
        """Verify new evidence of this KMS itself, and return the identity of its guest.

        Raises:
            KmsFailureError: If this KMS has no attester, or its evidence is missing or rejected.
        """
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
        raise KmsRefusalError("domain contains an invalid DNS label") from error  # as in dstack


async def finish(setup: Onboarding, _: None = None) -> None:
    """Finish the setup: the KMS then serves HTTPS on this address.

    Raises:
        KmsRefusalError: If the KMS has no keys yet.
    """
    if setup.state is None:
        raise KmsRefusalError("KMS has no keys; call Onboard.Bootstrap or Onboard.Onboard first")
    setup.finish()


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
    await finish(setup)
    return ViewResponse(CONTENT_TYPE, b"OK")
