"""A private key and its certificate with evidence about the key: `Issued`, and `issue`.

`load_issued` loads key and certificates into an ssl context, without a file on disk.
"""

import contextlib
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

from attestkit._argument_checks import wrong_type
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import (
    certificate_pem,
    check_leaf_fields,
    issue_leaf,
    read_certificate,
)
from attestkit._formats.strict_json import string
from attestkit._system.clock import current_time
from attestkit.attestation import AppInfo, Attestation, Encoding
from attestkit.errors import ConfigError, FormatError, UnsupportedError, UsageError
from attestkit.keys.hkdf import derive_p256
from attestkit.ra_tls.certificate import OID_APP_INFO, OID_ATTESTATION, OID_CERT_USAGE
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import FormatReason

_KEY_PEM: Final = re.compile(r"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----")
_MAX_CHAIN: Final = 16  # certificates in an agent's response, which has two or three
_USAGE: Final = b"app:custom"
_LIFETIME: Final = 3600  # seconds from now
_BACKDATED: Final = 300  # seconds, for peers whose clock is slow


class Issued(NamedTuple):
    """A private key (PKCS#8 in PEM) and its certificate chain (PEM); pickles without `renew`."""

    key_pem: str  # PKCS#8
    certificate_chain: tuple[str, ...]  # PEM, the end-entity certificate first
    renew: "Callable[[], Issued] | None" = None
    """Function that returns a new certificate, for contexts that renew it; None: they do not.

    It is called in a thread of its own, which may overlap with any other thread of the program.
    """

    def __repr__(self) -> str:
        return f"Issued(key_pem=<secret>, certificate_chain=<{len(self.certificate_chain)}>)"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle key and chain: `renew` may use a device, which only this process has open."""
        return type(self), (self.key_pem, self.certificate_chain)

    @classmethod
    def from_agent_response(
        cls, fields: Mapping[str, object], renew: "Callable[[], Issued] | None" = None
    ) -> "Issued":
        """Create an object from the response of a dstack guest agent to GetTlsKey.

        Args:
            fields: JSON object with `key` and `certificate_chain`; other members are ignored.
            renew: Function that requests a new key and certificate, see `Issued.renew`.

        Raises:
            FormatError: If `key` or `certificate_chain` is missing or malformed. `server_context`
                and `client_context` check that the key belongs to the certificate.
        """
        if not isinstance(fields, Mapping):
            raise FormatError("GetTlsKey response: must be a JSON object", reason="wrong_type")
        key, chain = string(fields, "key"), fields.get("certificate_chain")
        if not _KEY_PEM.search(key):
            raise FormatError("key: must be a private key in PEM", reason="syntax")
        if not isinstance(chain, list | tuple):
            reason: FormatReason = "missing" if chain is None else "wrong_type"
            raise FormatError("certificate_chain: must be a list", reason=reason)
        if not 1 <= len(chain) <= _MAX_CHAIN:
            message = f"certificate_chain: must be 1 to {_MAX_CHAIN} certificates, not {len(chain)}"
            raise FormatError(message, reason="wrong_size")
        for index, pem in enumerate(chain):
            where = f"certificate_chain[{index}]"
            if not isinstance(pem, str):
                raise FormatError(f"{where}: must be text", reason="wrong_type")
            try:
                read_certificate(pem)
            except FormatError as error:
                raise FormatError(f"{where}: {error}", reason=error.reason) from error
        return cls(key, tuple(chain), renew)


class AttestFunction(Protocol):
    """Function that returns evidence over report data, such as `Attester.attest`."""

    def __call__(self, *, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes of report data."""
        ...


def issue(
    *,
    subject: str,
    alt_names: Sequence[str] = (),
    key: P256Key | None = None,
    attest: "AttestFunction",
    ca_cert: str,
    ca_key: P256Key,
    usage_ra_tls: bool = False,
    server_auth: bool = False,
    client_auth: bool = False,
    not_before: int | None = None,
    not_after: int | None = None,
    with_app_info: bool = False,
    encoding: Encoding | None = None,
    app_info_array: Literal[8, 9] | None = None,
    now: Callable[[], float] = current_time,
    random: Callable[[int], bytes] = os.urandom,
) -> Issued:
    """Issue a certificate by a CA, as dstack's GetTlsKey and IssueCert do.

    With `usage_ra_tls` it contains evidence about its key. The chain is this certificate and that
    of the CA.

    Args:
        subject: Common name, at most 64 characters; may be empty.
        alt_names: DNS names and IP addresses.
        key: Key pair of the certificate; None generates one from 32 `random` bytes.
        attest: `Attester.attest`, or a function that returns evidence over 64 bytes of
            `report_data`. It is always called, so that the platform attests the key of every
            certificate.
        ca_cert: The issuer's certificate in PEM, which becomes part of the chain.
        ca_key: The issuer's key.
        usage_ra_tls: Whether to include the evidence, shortened by `Attestation.stripped`.
        server_auth: Whether it has the extended key usage of TLS servers.
        client_auth: Whether it has the extended key usage of TLS clients.
        not_before: Seconds since 1970, at most 253402300799 (the end of 9999); None and 0 mean five
            minutes ago.
        not_after: As `not_before`; None and 0 mean one hour from now. Peers reject a longer life
            than their `max_lifetime`, by default a day (`MAX_LIFETIME` of
            `attestkit.ra_tls.certificate`). If neither date is given, the contexts of
            `server_context` and `client_context` renew the certificate, see `Issued.renew`.
        with_app_info: Whether to include the app info, which is read from the evidence.
        encoding: Encoding of the evidence, "v1" as in IssueCert; None is that of
            `Attestation.to_bytes`, as in GetTlsKey.
        app_info_array: 8 or 9 writes the app info as an array of so many values, as agents before
            dstack 0.6; None as a map.
        now: Returns the time in seconds since 1970.
        random: Returns a number of random bytes.

    Raises:
        UsageError: If a value cannot be encoded in a certificate, `not_before` is not earlier than
            `not_after`, `ca_key` does not belong to `ca_cert`, or `app_info_array` is not None, 8
            or 9.
        FormatError: If `ca_cert` or the evidence is malformed.
        ConfigError: If `not_after` is not given, and the clock `now()` is before 1970.
        AttestKitError: An error of `attest`, unchanged.
    """
    if app_info_array not in (None, 8, 9):
        message = f"app_info_array: must be 8, 9 or None, not {app_info_array!r}"
        raise UsageError(message, reason="wrong_value")

    def make() -> Issued:
        begin, end = _validity(now(), not_before, not_after)
        check_leaf_fields(  # before the platform is used
            subject=subject, alt_names=alt_names, not_before=begin, not_after=end
        )
        pair = key or derive_p256(random(32))
        evidence = attest(report_data=ReportData.bind(ReportData.RATLS_CERT, pair.spki_der))
        leaf = issue_leaf(
            public_key=pair,
            subject=subject,
            alt_names=alt_names,
            server_auth=server_auth,
            client_auth=client_auth,
            not_before=begin,
            not_after=end,
            extensions=_extensions(
                evidence if usage_ra_tls else None,
                evidence.app_info if with_app_info else None,
                encoding,
                app_info_array,
            ),
            ca_cert=ca_cert,
            ca_key=ca_key,
        )
        renew = None if not_before or not_after else make
        return Issued(pair.pkcs8_pem, (certificate_pem(leaf), ca_cert), renew)

    return make()


def _validity(now: float, not_before: int | None, not_after: int | None) -> tuple[int, int]:
    """Return start and end of a certificate's validity, in seconds since 1970.

    All arguments are in seconds since 1970 too. `not_before` None or 0 is five minutes before
    `now`, and `not_after` None or 0 an hour after it.

    Raises:
        ConfigError: If the clock is before 1970 and determines the end.
    """
    if now < 0 and not not_after:
        message = f"system clock: {int(now)} seconds since 1970; set the clock, or pass not_after"
        raise ConfigError(message, reason="clock")
    return not_before or max(0, int(now) - _BACKDATED), not_after or int(now) + _LIFETIME


def _extensions(
    evidence: Attestation | None,
    app_info: AppInfo | None,
    encoding: Encoding | None,
    app_info_array: Literal[8, 9] | None,
) -> list[tuple[str, bytes]]:
    """Return OIDs (dotted) and contents of the dstack extensions, in the certificate's order.

    Without evidence or app info (None) the extension is left out. `encoding` is that of the
    evidence (None: the default of `Attestation.to_bytes`); `app_info_array` writes the app info as
    an array of 8 or 9 values, None as a map.
    """
    found = [(OID_CERT_USAGE, _USAGE)]
    if app_info is not None:
        found.insert(0, (OID_APP_INFO, app_info.to_msgpack(array=app_info_array)))
    if evidence is not None:
        found.append((OID_ATTESTATION, evidence.stripped().to_bytes(encoding)))
    return found


def load_issued(context: ssl.SSLContext, issued: object) -> None:
    """Load key and certificates into a context, without a file on disk.

    Raises:
        UsageError: If `issued` is not an `Issued`, or its key does not belong to its certificate.
        UnsupportedError: If memfd_create or /proc is not available.
    """
    if not isinstance(issued, Issued):  # the text omits the value, which may be a key
        raise wrong_type("issued", "a ra_tls.Issued", issued)
    message = "issued: must have key and certificates in PEM, the key being that of the first one"
    invalid = UsageError(message, reason="invalid_key")
    try:
        content = "".join((issued.key_pem, *issued.certificate_chain)).encode()
    except (TypeError, UnicodeError):
        raise invalid from None  # the cause may contain the key
    with _file_in_memory(content) as path:
        try:
            context.load_cert_chain(path, password="")
        except OSError as error:
            raise invalid from error


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """Context manager: yield the path of a file in memory with `content`, for ssl to load a key.

    The key is not written to disk, and the file is removed on exit in any case.
    """
    try:
        descriptor = os.memfd_create("attestkit-tls-key", os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        message = "TLS key: memfd_create, which loading it requires, is not available"
        raise UnsupportedError(message, reason="feature") from error
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(content)
        path = f"/proc/self/fd/{descriptor}"
        if not os.path.exists(path):  # noqa: PTH110 - three times as fast as Path
            message = "TLS key: /proc/self/fd, which loading it requires, is not available"
            raise UnsupportedError(message, reason="feature")
        yield path
