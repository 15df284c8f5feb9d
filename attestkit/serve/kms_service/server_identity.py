"""Settings of the simulated KMS, its keys and certificates, and TLS contexts."""

import ssl
from collections.abc import Callable
from contextvars import ContextVar
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.x509.agent_validity import YEAR_1975
from attestkit.backends.simulator.faults.kms_faults import CONNECTION, ROOTS, KmsFaults
from attestkit.kms.release import certificates
from attestkit.kms.release.authorization import KmsAuthorization
from attestkit.kms.release.state_folder import KmsState, create_state
from attestkit.kms.tls_chain import USAGE_APP_CUSTOM, USAGE_KMS_RPC
from attestkit.ra_tls.issuance import Issued, load_issued
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.kms.root import KmsRoot
    from attestkit.verifier import Verifier


class KmsParts(NamedTuple):
    """Verifier, authorization and settings of a KMS: all that it needs besides its keys.

    Attributes:
        verifier: Verifies the evidence of clients.
        authorization: Decides about clients whose evidence was verified.
        attester: Attests the KMS itself; None: its certificate has no evidence.
        faults: Faults to inject.
        now: Returns the time in seconds since 1970.
        on_keys: Called with the root keys before HTTPS is served.
        allow_any_upgrade: Reported by GetMeta, without effect.
        use_claimed_image: Accept a hash of an OS image that was not verified.
        enforce_self_authorization: Release nothing unless the authorization allows the KMS itself.
        released_platforms: Of dstack-amd-sev-snp and dstack-aws-nitro-tpm, those whose guests get
            keys; guests of other platforms need not be enabled.
    """

    verifier: "Verifier"
    authorization: KmsAuthorization
    attester: "Attester | None"
    faults: KmsFaults
    now: Callable[[], float]
    on_keys: "Callable[[KmsRoot], object] | None" = None
    allow_any_upgrade: bool = False
    use_claimed_image: bool = False
    enforce_self_authorization: bool = False
    released_platforms: frozenset[str] = frozenset()


_OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
_PAST: Final = certificates.ValidityPeriod(YEAR_1975, 1_577_836_799)  # 1975 to the end of 2019

current_state: Final[ContextVar[KmsState]] = ContextVar("current_state")
"""Keys and certificates of the KMS that the current connection presents."""


class ServerContext(ssl.SSLContext):
    """TLS context of a connection, and the keys of the KMS whose certificate it presents."""

    state: KmsState
    shows_other: bool  # a fault: the certificate of another KMS


class _Certificate(NamedTuple):
    """Properties of the server's certificate and CA of clients, which faults change."""

    usage: bytes | None = USAGE_KMS_RPC  # special usage of the certificate; None: without it
    is_attested: bool = True  # contains evidence
    is_temp_ca_over: bool = False  # the temporary CA has expired


_BY_FAULT: Final = {
    "kms_app_cert": _Certificate(usage=USAGE_APP_CUSTOM),
    "kms_no_usage": _Certificate(usage=None),
    "kms_unattested": _Certificate(is_attested=False),
}


class ServerIdentity:
    """Keys and certificates of a KMS, replaceable while it runs, and TLS contexts. Thread-safe.

    Args:
        state: Keys and certificates.
        parts: Verifier, authorization and settings of the KMS.
    """

    def __init__(self, state: KmsState, parts: KmsParts) -> None:
        self._lock, self._parts = Lock(), parts
        self._evidence: bytes | None = None
        self._is_temp_ca_over = False
        self._set_state(state)

    def _set_state(self, state: KmsState) -> None:
        self.state: KmsState = state
        self._other: KmsState | None = None
        self._contexts: dict[tuple[bool, _Certificate], ServerContext] = {}

    @property
    def other(self) -> KmsState:
        """Keys and certificates of a KMS with other roots and the same temporary CA, for faults."""
        with self._lock:
            return self._make_other()

    def _make_other(self) -> KmsState:
        if self._other is None:
            roots = self.state.roots.successor()
            self._other = create_state(roots, self.state.domain, int(self._parts.now()))
        return self._other

    def replace_roots(self) -> None:
        """Replace the roots by those of the next epoch, also for existing connections."""
        with self._lock:
            self._set_state(self._make_other())

    def expire_temp_ca(self) -> str:
        """Expire the temporary CA for the next handshake; return its expired certificate in PEM."""
        with self._lock:
            self._is_temp_ca_over = True
        return certificates.issue_temp_ca(self.state.roots, _PAST)

    def prepare(self) -> None:
        """Make the context of connections without faults, so that errors are raised at startup.

        Raises:
            AttestKitError: If the attester returns no evidence for the certificate.
        """
        with self._lock:
            self._get_context(shows_other=False, certificate=_Certificate())

    def next_context(self) -> ServerContext:
        """Return the context of the next connection; injects the faults of handshakes.

        Raises:
            AttestKitError: If the attester returns no evidence for a certificate that needs some.
        """
        shows_other = self._parts.faults.strike(ROOTS) is not None
        struck = self._parts.faults.strike(CONNECTION)
        certificate = _Certificate() if struck is None else _BY_FAULT[struck.name]
        with self._lock:
            is_over, self._is_temp_ca_over = self._is_temp_ca_over, False
            certificate = certificate._replace(is_temp_ca_over=is_over)
            return self._get_context(shows_other=shows_other, certificate=certificate)

    def _get_context(self, *, shows_other: bool, certificate: _Certificate) -> ServerContext:
        key = (shows_other, certificate)
        if key not in self._contexts:
            state = self._make_other() if shows_other else self.state
            self._contexts[key] = self._make_context(state, certificate)
            self._contexts[key].shows_other = shows_other
        return self._contexts[key]

    def _make_context(self, state: KmsState, certificate: _Certificate) -> ServerContext:
        """Return a context with a newly issued certificate of the KMS in `state`."""
        roots = state.roots
        pem = certificates.issue_rpc(
            roots,
            state.root_pem,
            state.domain,
            certificates.default_window(roots, int(self._parts.now())),
            usage=certificate.usage,
            evidence=self._attest(roots.rpc_key.spki_der) if certificate.is_attested else None,
        )
        is_over = certificate.is_temp_ca_over
        temp_ca = certificates.issue_temp_ca(roots, _PAST) if is_over else state.temp_ca_pem
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.state = state
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.options |= _OPTIONS
        context.num_tickets = 0  # in TLS 1.3, OP_NO_TICKET only makes tickets stateful
        # Anonymous clients may call three methods, and a refusal is an error of the method.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=temp_ca)
        load_issued(context, Issued(roots.rpc_key.pkcs8_pem, (pem,)))  # without its root
        return context

    def _attest(self, spki: bytes) -> bytes | None:
        """Return encoded evidence over the TLS key `spki` (DER), shortened for a certificate.

        None without an attester. It is created once, because the TLS key does not change while the
        KMS runs.
        """
        if self._parts.attester is not None and self._evidence is None:
            bound = ReportData.bind(ReportData.RATLS_CERT, spki)
            self._evidence = self._parts.attester.attest(report_data=bound).stripped().to_bytes()
        return self._evidence
