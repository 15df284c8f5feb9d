"""Certificates of the app: issued by its own CA, or by its KMS."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.agent_validity import TEN_YEARS, YEAR_1975
from attestkit._crypto.x509.app_certificates import check_leaf_fields
from attestkit.attestation import Attestation, Encoding
from attestkit.errors import ConfigError, FormatError, KmsError, UnsupportedError, UsageError
from attestkit.keys import AppKeys
from attestkit.keys.hkdf import derive_p256
from attestkit.report_data import ReportData
from attestkit.serve.rpc import messages as m
from attestkit.serve.services.backend_errors import backend_error

if TYPE_CHECKING:
    from attestkit.kms.client import KmsClient


NO_KEYS: Final = (
    "this server has no app keys; start it with --app-keys FILE, or with .appkeys.json in the "
    "folder $DSTACK_HOST_SHARED_DIR"
)
_FAILED: Final = "Failed to sign the CSR"
_NO_URL: Final = (
    f"{_FAILED}: the app's certificates are issued by its KMS, whose URL is not in the key file; "
    "start the server with --kms-url URL"
)
_MAX_ALT_NAMES: Final = 4096
SIGN_SECONDS: Final = 20.0
"""Time limit of each call of a KMS that signs a certificate, in seconds."""


@dataclass(eq=False)
class CertificateIssuer:
    """Issues certificates of the app.

    Args:
        app_keys: The app's keys; None: nothing is issued.
        kms: Client of the KMS that signs, if the app's keys come from a KMS. None: a client with
            the URL and the root CA in the key file.
        attest: Returns evidence over report data of 64 bytes, for an encoding.
        now: Returns the Unix time.
        random: Returns the given number of random bytes.
        app_info_array: Number of values if app info in certificates is an array; None: a map.
    """

    app_keys: AppKeys | None = field(repr=False)
    kms: "KmsClient | None"
    attest: Callable[[bytes, Encoding | None], Attestation]
    now: Callable[[], float]
    random: Callable[[int], bytes]
    app_info_array: Literal[8, 9] | None

    def __post_init__(self) -> None:
        self.is_remote: bool = self.app_keys is not None and self.app_keys.ca_key is None

    def check(self) -> None:
        """Raise UnsupportedError if there is neither a CA nor the URL of a KMS; call no KMS."""
        if self.is_remote:
            self._client()
        else:
            self._own_ca()

    def issue(
        self, args: m.GetTlsKeyArgs, key: P256Key | None = None, encoding: Encoding | None = None
    ) -> m.GetTlsKeyResponse:
        """Return a key and its certificate chain, in PEM; with a KMS this waits for the network.

        Args:
            args: Contents of the certificate.
            key: The key; None: a new one.
            encoding: Encoding of the evidence in the certificate; None: that of Attest in the
                guest API v0.

        Raises:
            UsageError: If a value cannot be encoded in a certificate, the validity does not begin
                before its end, or there are too many alternative names.
            UnsupportedError: If the app has no CA and no KMS, or the encoding does not define
                evidence of the platform.
            BackendError: If the platform produces no evidence, or the KMS no valid certificate.
            ConfigError: If the system clock is before 1970, and determines the end of the validity.
        """
        begin, end = choose_validity(args.not_before, args.not_after, self.now())
        if len(args.alt_names) > _MAX_ALT_NAMES:  # each takes time, in which others wait
            raise UsageError(f"alt_names: over {_MAX_ALT_NAMES}; give fewer", reason="too_many")
        if self.is_remote:
            check_leaf_fields(  # as ra_tls.issue does
                subject=args.subject, alt_names=args.alt_names, not_before=begin, not_after=end
            )
            return self._request(args, key, encoding)
        ca_cert, ca_key = self._own_ca()

        def attest(*, report_data: bytes) -> Attestation:
            return self.attest(report_data, encoding)

        try:
            issued = ra_tls.issue(
                subject=args.subject,
                alt_names=args.alt_names,
                key=key,
                attest=attest,
                ca_cert=ca_cert,
                ca_key=ca_key,
                usage_ra_tls=args.usage_ra_tls,
                server_auth=args.usage_server_auth,
                client_auth=args.usage_client_auth,
                not_before=begin,
                not_after=end,
                with_app_info=args.with_app_info,
                encoding=encoding,
                app_info_array=self.app_info_array if encoding is None else None,
                now=self.now,
                random=self.random,
            )
        except FormatError as error:  # of the evidence or the CA, so not the client's fault
            raise backend_error(_FAILED, error) from error
        return m.GetTlsKeyResponse(issued.key_pem, issued.certificate_chain)

    def _own_ca(self) -> tuple[str, P256Key]:
        if self.app_keys is None or self.app_keys.ca_key is None:
            raise UnsupportedError(f"{_FAILED}: {NO_KEYS}", reason="no_keys")
        return self.app_keys.ca_cert, self.app_keys.ca_key

    def _request(
        self, args: m.GetTlsKeyArgs, key: P256Key | None, encoding: Encoding | None
    ) -> m.GetTlsKeyResponse:
        """Return a key and the chain that the KMS signs, whose key and app the client checks.

        Args:
            args: Contents of the certificate.
            key: The key; None: a new one.
            encoding: Encoding of the evidence in the request; None: that of Attest in the guest API
                v0.
        """
        from attestkit.kms.cert_request import CertRequest, check_alt_names  # lazy: only with a KMS

        check_alt_names(args.alt_names)
        client, pair = self._client(), key or derive_p256(self.random(32))
        bound = ReportData.bind(ReportData.RATLS_CERT, pair.spki_der)
        evidence = self.attest(bound, encoding).stripped()
        try:
            request = CertRequest(
                pubkey=pair.spki_der,
                subject=args.subject,
                evidence=Attestation.from_bytes(evidence.to_bytes(encoding)),
                subject_alt_names=tuple(args.alt_names),
                usage_server_auth=args.usage_server_auth,
                usage_client_auth=args.usage_client_auth,
                ext_quote=args.usage_ra_tls,
                ext_app_info=args.with_app_info,
                not_before=args.not_before or None,
                not_after=args.not_after or None,
            )
            chain = client.sign_certificate(request, pair)
        except (FormatError, KmsError) as error:
            raise backend_error(_FAILED, error) from error
        return m.GetTlsKeyResponse(pair.pkcs8_pem, chain)

    def _client(self) -> "KmsClient":
        if self.kms is None:
            from attestkit.kms.client import KmsClient  # lazy: only with a KMS
            from attestkit.kms.https_call import TimeLimits
            from attestkit.kms.root import KmsRoot

            keys = self.app_keys
            provider = None if keys is None else keys.kms_provider
            if keys is None or provider is None or not provider.url:
                raise UnsupportedError(_NO_URL, reason="no_certificates")
            try:
                root = KmsRoot(bytes.fromhex(keys.key_provider_id))
            except UsageError as error:
                message = f"{_FAILED}: KMS of the key file: {error}"
                raise UnsupportedError(message, reason="no_certificates") from error
            self.kms = KmsClient(
                provider.url,
                roots=[root],
                limits=TimeLimits(call=SIGN_SECONDS),
                now=self.now,
                random=self.random,
            )
        return self.kms


def choose_validity(not_before: int | None, not_after: int | None, now: float) -> tuple[int, int]:
    """Return start and end of the validity in seconds since 1970.

    `not_before` and `not_after` are such times; None and 0 mean 1975 and ten years from `now`.

    Raises:
        ConfigError: If the clock `now` is before 1970 and determines the end.
    """
    if now < 0 and not not_after:
        message = f"system clock: {int(now)} seconds since 1970; set the clock, or pass not_after"
        raise ConfigError(message, reason="clock")
    return not_before or YEAR_1975, not_after or int(now) + TEN_YEARS
