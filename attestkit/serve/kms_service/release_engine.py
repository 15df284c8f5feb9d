"""Answers of the KMS's methods: checks in the order of kms.md, section 1.5, then keys.

Its functions block: they verify evidence, and may call an authorization server. `methods` calls
them in threads.
"""

import hmac
import logging
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._sanitize import one_line, shown
from attestkit.attestation import Attestation
from attestkit.backends.simulator.faults.kms_faults import (
    CERTIFICATE,
    DECISION,
    KEYS,
    REFUSAL,
    TEMP_CA,
    KmsFaults,
)
from attestkit.errors import AttestKitError, UsageError
from attestkit.kms.cert_request import CertRequest, verify_cert_request
from attestkit.kms.release.authorization import Decision, KmsAuthorization, Role, authorize_guest
from attestkit.kms.release.boot_info import VerifiedGuest
from attestkit.kms.release.certificates import LeafProfile, sign_app_certificate
from attestkit.kms.release.key_release import release_app_keys, sign_env_public_key
from attestkit.kms.release.state_folder import KmsState
from attestkit.report_data import ReportData
from attestkit.serve.kms_service.client_evidence import ClientEvidence
from attestkit.serve.kms_service.errors import KmsFailureError, KmsRefusalError, refusal
from attestkit.serve.kms_service.server_identity import ServerIdentity
from attestkit.serve.rpc.messages_kms import (
    AppKeyResponse,
    BootstrapResponse,
    GetMetaResponse,
    GetTempCaCertResponse,
    KmsKeyResponse,
    KmsKeys,
    PublicKeyResponse,
    SignCertResponse,
)

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.verifier import Verifier

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


class ReleaseOptions(NamedTuple):
    """Conditions of a release, besides verifier and authorization."""

    allow_any_upgrade: bool = False  # reported by GetMeta, without effect
    use_claimed_image: bool = False  # a hash of an OS image that was not verified
    enforce_self_authorization: bool = False  # requires an attester
    released_platforms: frozenset[str] = frozenset()  # of those that need to be enabled


class ReleaseEngine:
    """Decides about requests, and derives the answers. Thread-safe.

    Args:
        identity: Keys and certificates of the KMS.
        verifier: Verifies the evidence of clients.
        authorization: Decides about clients whose evidence was verified.
        options: See `ReleaseOptions`.
        attester: Attests the KMS itself.
        faults: Faults to inject.
        now: Returns the time in seconds since 1970.
    """

    def __init__(
        self,
        identity: ServerIdentity,
        verifier: "Verifier",
        authorization: KmsAuthorization,
        options: ReleaseOptions,
        *,
        attester: "Attester | None",
        faults: KmsFaults,
        now: Callable[[], float],
    ) -> None:
        if options.enforce_self_authorization and attester is None:
            text = "enforce_self_authorization: requires an attester of the KMS"
            raise UsageError(text, reason="missing")
        if unknown := options.released_platforms - _GATES.keys():
            text = f"released_platforms: must be of {', '.join(_GATES)}: {shown(min(unknown))}"
            raise UsageError(text, reason="unknown_name")
        self.identity = identity
        self.faults = faults
        self._verifier, self._authorization, self._options = verifier, authorization, options
        self._attester, self._now = attester, now
        self._own_lock = Lock()
        self._own_answer: tuple[float, AttestKitError | None] = (float("-inf"), None)

    def get_meta(self, state: KmsState) -> GetMetaResponse:
        """Describe the KMS, to any client."""
        try:
            info = self._authorization.describe()
        except AttestKitError as error:
            raise refusal(error) from error
        created = state.bootstrap_info
        return GetMetaResponse(
            ca_cert=state.root_pem,
            allow_any_upgrade=self._options.allow_any_upgrade,
            k256_pubkey=state.roots.k256_public_key,
            bootstrap_info=None if created is None else BootstrapResponse(*created),
            is_dev=True,  # it is simulated
            gateway_app_id=info.gateway_app_id,
            kms_contract_address=info.kms_contract_address,
            chain_id=info.chain_id,
            app_auth_implementation=info.app_auth_implementation,
        )

    def get_temp_ca(self, state: KmsState) -> GetTempCaCertResponse:
        """Return the temporary CA with its key, to any client."""
        self._authorize_self()
        temp_ca, root = state.temp_ca_pem, state.root_pem
        fault = self.faults.strike(TEMP_CA)
        if fault is not None and fault.name == "kms_wrong_root":
            root = self.identity.other.root_pem
        elif fault is not None:
            temp_ca = self.identity.expire_temp_ca()
        return GetTempCaCertResponse(temp_ca, state.roots.temp_ca_key.pkcs8_pem, root)

    def get_env_key(self, state: KmsState, app_id: bytes) -> PublicKeyResponse:
        """Return the public key for an app's encrypted environment, to any client."""
        self._authorize_self()
        if len(app_id) != _APP_ID_SIZE:
            raise KmsRefusalError("app_id must be 20 bytes")
        return PublicKeyResponse(*sign_env_public_key(state.roots, app_id, int(self._now())))

    def release_app_keys(
        self, state: KmsState, client: ClientEvidence | None, api_version: int, vm_config: str
    ) -> AppKeyResponse:
        """Release the keys of the app whose evidence the client has presented."""
        if api_version > _MAX_API_VERSION:
            raise KmsRefusalError(f"Unsupported API version: {api_version}")
        self._authorize_self()
        try:
            guest, decision = self._authorize_client(state, "app", client, vm_config)
        except AttestKitError as error:
            failure = refusal(error, _NOT_ALLOWED)
            _log_failure("GetAppKey", failure)
            raise failure from error
        boot = guest.boot_info
        keys = release_app_keys(state.roots, boot.app_id, boot.instance_id)
        _log("GetAppKey", boot.app_id)
        answer = AppKeyResponse(
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

    def release_roots(
        self, state: KmsState, client: ClientEvidence | None, vm_config: str
    ) -> KmsKeyResponse:
        """Release the roots to another KMS."""
        self._authorize_self()
        try:
            guest, _ = self._authorize_client(state, "kms", client, vm_config)
        except AttestKitError as error:
            failure = refusal(error)
            _log_failure("GetKmsKey", failure)
            raise failure from error
        _log("GetKmsKey", guest.boot_info.app_id)
        roots = state.roots
        keys = KmsKeys(roots.ca_key.pkcs8_pem, roots.k256_secret)
        return KmsKeyResponse(roots.temp_ca_key.pkcs8_pem, (keys,))

    def sign_certificate(
        self, state: KmsState, api_version: int, csr: bytes, signature: bytes, vm_config: str
    ) -> SignCertResponse:
        """Sign a certificate of the app whose evidence is in the request (kms.md, section 5)."""
        self._authorize_self()
        try:
            request = verify_cert_request(csr, signature, api_version)
            evidence = request.attested()
            guest = self._authorize_request(state, request, evidence, vm_config)
            app_id = guest.boot_info.app_id
            leaf = _leaf_profile(request, evidence, app_id)
            if self.faults.strike(CERTIFICATE) is not None:
                leaf = leaf._replace(spki=state.roots.rpc_key.spki_der)
                app_id = _other_app(app_id)
            chain = sign_app_certificate(
                state.roots, state.root_pem, app_id, leaf, now=int(self._now())
            )
        except AttestKitError as error:
            failure = refusal(error)
            _log_failure("SignCert", failure)
            raise failure from error
        _log("SignCert", guest.boot_info.app_id)
        return SignCertResponse(chain)

    def _authorize_request(
        self, state: KmsState, request: CertRequest, evidence: Attestation, vm_config: str
    ) -> VerifiedGuest:
        """Verify the evidence in a certificate request, and decide about its app."""
        start = "Quote verification failed: "
        bound = ReportData.bind(ReportData.RATLS_CERT, request.pubkey)
        if not hmac.compare_digest(evidence.report_data, bound):
            raise KmsRefusalError(f"{start}report data mismatch")
        client = ClientEvidence(evidence, bound)
        return self._authorize_client(state, "app", client, vm_config, start, boottime=True)[0]

    def _authorize_client(
        self,
        state: KmsState,
        role: Role,
        client: ClientEvidence | None,
        vm_config: str,
        prefix: str = "",
        *,
        boottime: bool = False,
    ) -> tuple[VerifiedGuest, Decision]:
        """Verify a client's evidence and decide; `prefix` is for errors of the verification."""
        if client is None:
            raise KmsRefusalError("No attestation provided")
        try:
            guest, decision = authorize_guest(
                self._verifier,
                self._authorization,
                role,
                client.attestation,
                report_data=client.report_data,
                ca_spki=state.roots.ca_spki,
                vm_config=vm_config,
                boottime=boottime,
                use_claimed_image=self._options.use_claimed_image,
                now=self._now(),
            )
        except AttestKitError as error:
            raise refusal(error, prefix) from error
        if role == "app" and self.faults.strike(DECISION) is not None:
            decision = Decision.refuse(REFUSAL)
        if not decision.is_allowed:
            raise KmsRefusalError(f"Boot denied: {decision.reason}", guest.boot_info.app_id)
        platform = guest.boot_info.tee_variant
        if platform in _GATES and platform not in self._options.released_platforms:
            raise KmsRefusalError(_GATES[platform], guest.boot_info.app_id)
        return guest, decision

    def _authorize_self(self) -> None:
        """Attest the KMS itself, and let the authorization decide about it (kms.md, 1.5).

        The answer is kept for a second.
        """
        if not self._options.enforce_self_authorization:
            return
        with self._own_lock:
            at, failure = self._own_answer
            if not 0 <= self._now() - at < _OWN_ANSWER_SECONDS:
                failure = self._ask_about_self()
                self._own_answer = (self._now(), failure)
        if failure is not None:
            raise refusal(failure, _SELF, is_own=True) from failure

    def _ask_about_self(self) -> AttestKitError | None:
        assert self._attester is not None
        try:
            decision = authorize_guest(
                self._verifier,
                self._authorization,
                "kms",
                self._attester.attest(report_data=bytes(64)),
                report_data=bytes(64),
                ca_spki=self.identity.state.roots.ca_spki,
                use_claimed_image=self._options.use_claimed_image,
                is_self=True,
                now=self._now(),
            )[1]
        except AttestKitError as error:
            return error
        if not decision.is_allowed:
            return KmsRefusalError(f"KMS is not allowed: {decision.reason}")
        return None

    def _spoil(self, answer: AppKeyResponse, state: KmsState, app_id: bytes) -> AppKeyResponse:
        """Inject a fault into an answer of GetAppKey."""
        fault = self.faults.strike(KEYS)
        if fault is None:
            return answer
        if fault.name == "kms_bad_signature":
            other = release_app_keys(state.roots, _other_app(app_id), b"")
            return answer._replace(k256_signature=other.k256_signature)
        if fault.name == "kms_short_key":
            return answer._replace(disk_crypt_key=b"", env_crypt_key=answer.env_crypt_key[:-1])
        return answer._replace(os_image_hash=b"\xee" * 32)  # kms_other_image


def _leaf_profile(request: CertRequest, evidence: Attestation, app_id: bytes) -> LeafProfile:
    """Return the content of the requested certificate.

    Raises:
        KmsRefusalError: If app info is requested, but the evidence names no app without the rules
            for guests that are booting.
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
    """Return the id of another app."""
    return bytes([app_id[0] ^ 1]) + app_id[1:]


def _log(method: str, app_id: bytes) -> None:
    """Log that keys or a certificate were released."""
    _logger.info("simulated KMS: %s for app %s: released", method, app_id.hex())


def _log_failure(method: str, failure: KmsRefusalError | KmsFailureError) -> None:
    """Log the reason why nothing was released, without the VM configuration."""
    app_id = failure.app_id.hex() if isinstance(failure, KmsRefusalError) else ""
    reason = one_line(str(failure), _MAX_LOGGED)
    text = "simulated KMS: %s for app %s: refused: %s"
    _logger.warning(text, method, app_id or "unknown", reason)
