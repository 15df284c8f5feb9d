"""Answers of the KMS's methods: checks in the order of upstream's KMS, then keys.

Its methods block: they verify evidence, and may call an authorization server. They run in threads.
"""

import hmac
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from attestkit._sanitize import one_line, shown
from attestkit.attestation import Attestation
from attestkit.backends.simulator.faults import kms_faults
from attestkit.errors import AttestKitError, UsageError
from attestkit.kms.cert_request import CertRequest, verify_cert_request
from attestkit.kms.release.authorization import Decision, Role, VerifiedGuest, authorize_guest
from attestkit.kms.release.certificates import LeafProfile, sign_app_certificate
from attestkit.kms.release.roots import release_app_keys, sign_env_public_key
from attestkit.kms.release.state_folder import KmsState
from attestkit.report_data import ReportData
from attestkit.serve.job_queue import JobThreads
from attestkit.serve.kms_service.client_evidence import ClientEvidence, current_client
from attestkit.serve.kms_service.errors import KmsRefusalError, refusal
from attestkit.serve.kms_service.request_queue import RequestQueue, queued
from attestkit.serve.kms_service.server_identity import KmsParts, ServerIdentity, current_state
from attestkit.serve.rpc import messages_kms as m
from attestkit.serve.rpc.service import Service

_MAX_API_VERSION: Final = 1
_APP_ID_SIZE: Final = 20
_OWN_ANSWER_SECONDS: Final = 1.0  # for which the KMS's own authorization is kept
_MAX_LOGGED: Final = 300  # characters of a reason in the log
_NOT_ALLOWED: Final = "App not allowed: "
_SELF: Final = "KMS self authorization failed: "
_GATES: Final = {
    "dstack-amd-sev-snp": "amd sev-snp key release is not enabled",
    "dstack-aws-nitro-tpm": "aws nitro-tpm key release is not enabled",
}
_logger = logging.getLogger("attestkit.kms")


class ReleaseEngine(RequestQueue):
    """Decides whether to release keys to a client, and derives them; context of the methods.

    Thread-safe.

    Args:
        identity: Keys and certificates of the KMS.
        parts: Verifier, authorization and settings of the KMS.
        threads: Threads of the requests; not shut down by this object.

    Raises:
        UsageError: If `parts` requires the KMS's own authorization without an attester, or releases
            keys to an unknown platform.
    """

    def __init__(self, identity: ServerIdentity, parts: KmsParts, threads: JobThreads) -> None:
        super().__init__(threads)
        if parts.enforce_self_authorization and parts.attester is None:
            text = "enforce_self_authorization: requires an attester of the KMS"
            raise UsageError(text, reason="missing")
        if unknown := parts.released_platforms - _GATES.keys():
            text = f"released_platforms: must be of {', '.join(_GATES)}: {shown(min(unknown))}"
            raise UsageError(text, reason="unknown_name")
        self.identity: ServerIdentity = identity
        self.faults: kms_faults.KmsFaults = parts.faults
        self._parts = parts
        self._own_lock = Lock()
        self._own_answer: tuple[float, AttestKitError | None] = (float("-inf"), None)

    def get_meta(self) -> m.GetMetaResponse:
        """Return the root certificate, public key and settings of the KMS; requires no evidence.

        Raises:
            KmsFailureError: If the authorization cannot describe itself.
        """
        state = current_state.get()
        try:
            info = self._parts.authorization.describe()._replace(is_dev=True)  # it is simulated
        except AttestKitError as error:
            raise refusal(error) from error
        created, key = state.bootstrap_info, state.roots.k256_public_key
        bootstrap = None if created is None else m.BootstrapResponse(*created)
        upgrade = self._parts.allow_any_upgrade
        return m.GetMetaResponse(state.root_pem, upgrade, key, bootstrap, *info)

    def get_temp_ca(self) -> m.GetTempCaCertResponse:
        """Return the temporary CA with its private key, and the root CA; requires no evidence.

        Raises:
            KmsRefusalError: If the KMS's own evidence is required, and not accepted.
            KmsFailureError: If it cannot be produced or verified.
        """
        self._authorize_self()
        state = current_state.get()
        temp_ca, root = state.temp_ca_pem, state.root_pem
        fault = self.faults.strike(kms_faults.TEMP_CA)
        if fault is not None and fault.name == "kms_wrong_root":
            root = self.identity.other.root_pem
        elif fault is not None:
            temp_ca = self.identity.expire_temp_ca()
        return m.GetTempCaCertResponse(temp_ca, state.roots.temp_ca_key.pkcs8_pem, root)

    def get_env_key(self, app_id: bytes) -> m.PublicKeyResponse:
        """Return the signed public key for the encrypted environment of an app.

        `app_id` has 20 bytes. Requires no evidence.

        Raises:
            KmsRefusalError: If `app_id` has another size, or as for `get_temp_ca`.
            KmsFailureError: As for `get_temp_ca`.
        """
        self._authorize_self()
        if len(app_id) != _APP_ID_SIZE:
            raise KmsRefusalError("app_id must be 20 bytes")
        roots = current_state.get().roots
        return m.PublicKeyResponse(*sign_env_public_key(roots, app_id, int(self._parts.now())))

    def release_app_keys(self, api_version: int, vm_config: str) -> m.AppKeyResponse:
        """Release the keys of the app whose evidence the client has presented.

        Args:
            api_version: Version of the request, 0 or 1.
            vm_config: VM configuration of the request, JSON; empty: that of the evidence.

        Raises:
            KmsRefusalError: If the version is not supported, or the evidence is missing, not valid,
                or of an app or platform that gets no keys; or as for `get_temp_ca`.
            KmsFailureError: If the KMS or its authorization fails.
        """
        if api_version > _MAX_API_VERSION:
            raise KmsRefusalError(f"Unsupported API version: {api_version}")
        self._authorize_self()
        state = current_state.get()
        with _logging_refusal("GetAppKey", _NOT_ALLOWED):
            guest, decision = self._authorize_client("app", current_client.get(), vm_config)
        boot = guest.boot_info
        keys = release_app_keys(state.roots, boot.app_id, boot.instance_id)
        _log("GetAppKey", boot.app_id)
        answer = m.AppKeyResponse(
            ca_cert=state.root_pem,
            disk_crypt_key=keys.disk_crypt_key,
            env_crypt_key=keys.env_crypt_key,
            k256_key=keys.k256_key,
            k256_signature=keys.k256_signature,
            tproxy_app_id=decision.gateway_app_id,
            gateway_app_id=decision.gateway_app_id,
            os_image_hash=boot.os_image_hash,
        )
        return self._spoil(answer, state, boot.app_id)

    def release_roots(self, vm_config: str) -> m.KmsKeyResponse:
        """Release the root keys to another KMS, the TLS client, which has presented evidence.

        `vm_config` is the VM configuration of the request, JSON; empty: that of the evidence.

        Raises:
            KmsRefusalError: If the evidence is missing, not valid, or of a KMS that gets no keys;
                or as for `get_temp_ca`.
            KmsFailureError: If the KMS or its authorization fails.
        """
        self._authorize_self()
        with _logging_refusal("GetKmsKey"):
            guest, _ = self._authorize_client("kms", current_client.get(), vm_config)
        _log("GetKmsKey", guest.boot_info.app_id)
        roots = current_state.get().roots
        keys = m.KmsKeys(roots.ca_key.pkcs8_pem, roots.k256_secret)
        return m.KmsKeyResponse(roots.temp_ca_key.pkcs8_pem, (keys,))

    def sign_certificate(
        self, api_version: int, csr: bytes, signature: bytes, vm_config: str
    ) -> m.SignCertResponse:
        """Sign a certificate of the app whose evidence is in a certificate request.

        Args:
            api_version: Version of the certificate request, 1 or 2.
            csr: Certificate request in SCALE.
            signature: ECDSA signature over `csr` by the key to be certified, DER.
            vm_config: VM configuration of the request, JSON; empty: that of the evidence.

        Raises:
            KmsRefusalError: If the request, its signature or its evidence is not valid, or the
                evidence is of an app or platform that gets no keys; or as for `get_temp_ca`.
            KmsFailureError: If the KMS or its authorization fails.
        """
        self._authorize_self()
        state = current_state.get()
        with _logging_refusal("SignCert"):
            request = verify_cert_request(csr, signature, api_version)
            evidence = request.attested()
            guest = self._authorize_request(request, evidence, vm_config)
            app_id = guest.boot_info.app_id
            leaf = _leaf_profile(request, evidence, app_id)
            if self.faults.strike(kms_faults.CERTIFICATE) is not None:
                leaf = leaf._replace(spki=state.roots.rpc_key.spki_der)
                app_id = _other_app(app_id)
            chain = sign_app_certificate(
                state.roots, state.root_pem, app_id, leaf, now=int(self._parts.now())
            )
        _log("SignCert", guest.boot_info.app_id)
        return m.SignCertResponse(chain)

    def _authorize_request(
        self, request: CertRequest, evidence: Attestation, vm_config: str
    ) -> VerifiedGuest:
        """Verify the evidence in a certificate request, and decide about its app.

        `vm_config` is the VM configuration of the request, JSON; empty: that of the evidence.
        """
        start = "Quote verification failed: "
        bound = ReportData.bind(ReportData.RATLS_CERT, request.pubkey)
        if not hmac.compare_digest(evidence.report_data, bound):
            raise KmsRefusalError(f"{start}report data mismatch")
        client = ClientEvidence(evidence, bound)
        return self._authorize_client("app", client, vm_config, start, boottime=True)[0]

    def _authorize_client(
        self,
        role: Role,
        client: ClientEvidence | None,
        vm_config: str,
        prefix: str = "",
        *,
        boottime: bool = False,
    ) -> tuple[VerifiedGuest, Decision]:
        """Verify a client's evidence, and request the decision about it.

        Args:
            role: Role of the client: an app or another KMS.
            client: Evidence of the client; None, if it has presented none, is refused.
            vm_config: VM configuration of the request, JSON; empty: that of the evidence.
            prefix: Start of the text of a verification error.
            boottime: As for `authorize_guest`: use the registers up to `boot-mr-done`.
        """
        if client is None:
            raise KmsRefusalError("No attestation provided")
        try:
            guest, decision = authorize_guest(
                self._parts.verifier,
                self._parts.authorization,
                role,
                client.attestation,
                report_data=client.report_data,
                ca_spki=current_state.get().roots.ca_spki,
                vm_config=vm_config,
                boottime=boottime,
                use_claimed_image=self._parts.use_claimed_image,
                now=self._parts.now(),
            )
        except AttestKitError as error:
            raise refusal(error, prefix) from error
        if role == "app" and self.faults.strike(kms_faults.DECISION) is not None:
            decision = Decision.refuse(kms_faults.REFUSAL)
        if not decision.is_allowed:
            raise KmsRefusalError(f"Boot denied: {decision.reason}", guest.boot_info.app_id)
        platform = guest.boot_info.tee_variant
        if platform in _GATES and platform not in self._parts.released_platforms:
            raise KmsRefusalError(_GATES[platform], guest.boot_info.app_id)
        return guest, decision

    def _authorize_self(self) -> None:
        """Attest the KMS itself, and let the authorization decide about it.

        The answer is kept for a second.
        """
        if not self._parts.enforce_self_authorization:
            return
        with self._own_lock:
            at, failure = self._own_answer
            if not 0 <= self._parts.now() - at < _OWN_ANSWER_SECONDS:
                failure = self._find_own_refusal()
                self._own_answer = (self._parts.now(), failure)
        if failure is not None:
            raise refusal(failure, _SELF, is_own=True) from failure

    def _find_own_refusal(self) -> AttestKitError | None:
        assert self._parts.attester is not None
        try:
            decision = authorize_guest(
                self._parts.verifier,
                self._parts.authorization,
                "kms",
                self._parts.attester.attest(report_data=bytes(64)),
                report_data=bytes(64),
                ca_spki=self.identity.state.roots.ca_spki,
                use_claimed_image=self._parts.use_claimed_image,
                is_self=True,
                now=self._parts.now(),
            )[1]
        except AttestKitError as error:
            return error
        if not decision.is_allowed:
            return KmsRefusalError(f"KMS is not allowed: {decision.reason}")
        return None

    def _spoil(self, answer: m.AppKeyResponse, state: KmsState, app_id: bytes) -> m.AppKeyResponse:
        """Return an answer of GetAppKey, changed by a fault if one is armed.

        `state` and `app_id` are those from which the answer was derived.
        """
        fault = self.faults.strike(kms_faults.KEYS)
        if fault is None:
            return answer
        if fault.name == "kms_bad_signature":
            other = release_app_keys(state.roots, _other_app(app_id), b"")
            return answer._replace(k256_signature=other.k256_signature)
        if fault.name == "kms_short_key":
            return answer._replace(disk_crypt_key=b"", env_crypt_key=answer.env_crypt_key[:-1])
        return answer._replace(os_image_hash=b"\xee" * 32)  # kms_other_image


def _leaf_profile(request: CertRequest, evidence: Attestation, app_id: bytes) -> LeafProfile:
    """Return the content of the requested certificate; `app_id` is the verified id of the app.

    Raises:
        KmsRefusalError: If app info is requested, but `evidence.app_info` names another app or
            none; the rules for guests that are still booting do not apply to it.
    """
    info = None
    if request.ext_app_info:
        # From evidence in its unverified form, with which verifiers compare it: `ra_tls.verify`.
        found = evidence.app_info
        if found.app_id != app_id:
            raise KmsRefusalError("cannot embed app info: the signer established none", app_id)
        info = found.to_msgpack()
    return LeafProfile(
        spki=request.pubkey,
        subject=request.subject,
        organisation=request.org_name or "",
        alt_names=request.subject_alt_names,
        server_auth=request.usage_server_auth,
        client_auth=request.usage_client_auth,
        not_before=request.not_before,
        not_after=request.not_after,
        app_info=info,
        evidence=evidence.stripped().to_bytes() if request.ext_quote else None,
    )


def _other_app(app_id: bytes) -> bytes:
    """Return an app id that differs from `app_id`, for faults."""
    return bytes([app_id[0] ^ 1]) + app_id[1:]


def _log(method: str, app_id: bytes) -> None:
    """Log that the method released keys or a certificate to the app."""
    _logger.info("simulated KMS: %s for app %s: released", method, app_id.hex())


@contextmanager
def _logging_refusal(method: str, prefix: str = "") -> Iterator[None]:
    """Context manager: log an AttestKitError, and raise it as the result of `refusal`.

    `method` is the name in the log, and `prefix` the start of the error's text. The VM
    configuration is not logged.
    """
    try:
        yield
    except AttestKitError as error:
        failure = refusal(error, prefix)
        app_id = failure.app_id.hex() if isinstance(failure, KmsRefusalError) else ""
        reason = one_line(str(failure), _MAX_LOGGED)
        text = "simulated KMS: %s for app %s: refused: %s"
        _logger.warning(text, method, app_id or "unknown", reason)
        raise failure from error


SERVICE: Final = Service(
    {
        "GetAppKey": queued(ReleaseEngine.release_app_keys, m.GetAppKeyRequest),
        "GetKmsKey": queued(ReleaseEngine.release_roots, m.GetKmsKeyRequest),
        "GetAppEnvEncryptPubKey": queued(ReleaseEngine.get_env_key, m.AppId),
        "GetMeta": queued(ReleaseEngine.get_meta),
        "GetTempCaCert": queued(ReleaseEngine.get_temp_ca),
        "SignCert": queued(ReleaseEngine.sign_certificate, m.SignCertRequest),
    },
    mount="/prpc/",
    prefix="KMS.",
    name="KMS",
    package=m.PACKAGE,
)
"""The service on the HTTPS listener."""

ATTESTED_METHODS: Final = ("GetAppKey", "GetKmsKey", "SignCert")
"""Methods whose requests the metrics count."""
