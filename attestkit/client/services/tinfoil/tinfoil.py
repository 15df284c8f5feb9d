"""Tinfoil: an enclave whose evidence comes from itself, or in a bundle of atc.tinfoil.sh.

Which program runs is decided by the policy: the measurements are compared with reference values.
Of TDX these are MRTD, RTMR0, RTMR1, RTMR2, and RTMR3, which is zeros; of SEV-SNP the measurement,
and HOST_DATA, which is zeros.
The Sigstore bundles of Tinfoil's releases are not evaluated here, which the claims say.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit._argument_checks import require_size
from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate, reading_x509
from attestkit._sanitize import shown
from attestkit.client.sealing.ehbp import EhbpSealing
from attestkit.client.services.service import NONCE_SIZE, Binding, Claims, Machine, Question, Where
from attestkit.client.services.tinfoil import tinfoil_documents
from attestkit.client.strict_answer import only_answer, read_answer_object
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, ServiceError

ROUTER: Final = "inference.tinfoil.sh"
"""The enclave that decrypts requests and passes them to the enclaves of models."""

_TARGET: Final = "/.well-known/tinfoil-attestation"
_BUNDLES: Final = "https://atc.tinfoil.sh"
_DOMAINS: Final = ("tinfoil.sh", "tinfoil.dev")
_WHAT: Final = "Tinfoil"
_BUNDLE: Final = "Tinfoil bundle"
_NO_RELEASE: Final = (
    "that the measurements are those of a published release (Sigstore is not evaluated)"
)
_NO_MODEL: Final = "the machine of the model behind the router"
_CHUNK: Final = re.compile(
    r"(?P<number>[0-9]{2})(?P<text>[a-z2-7]{1,61})\.(?P<kind>hpke|hatt)\.(?P<parent>[a-z0-9.-]+)"
)
_NO_NONCE: Final = "that the evidence is recent: it has no nonce"


class _SealedToEnclave:
    def sealing(self, claims: Claims, binding: Binding, model: str | None) -> EhbpSealing:
        """Return the Sealing that encrypts requests to the enclave's key, that of `binding`.

        Args:
            claims: Not used.
            binding: Key of kind "hpke": X25519, 32 bytes.
            model: Not used.

        Raises:
            ServiceError: If `binding` is not of kind `hpke`.
        """
        if binding.kind != "hpke":
            message = f"{_WHAT}: key to encrypt to must be of kind hpke, not {binding.kind}"
            raise ServiceError(message, reason="no_channel")
        return EhbpSealing(binding.key)


class Tinfoil(_SealedToEnclave):
    """A Tinfoil enclave that serves a document with evidence, of any version, itself.

    Args:
        host: Host that a document belongs to if it is read offline, without a TLS peer.
    """

    name: str = "tinfoil"
    where: Where = "wire"

    def __init__(self, host: str = ROUTER) -> None:
        self.host: str = host

    def recognizes(self, host: str) -> bool:
        """Return whether a host is below a domain of Tinfoil."""
        host = _canonical(host)
        return any(host == domain or host.endswith(f".{domain}") for domain in _DOMAINS)

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the document; documents of v2 do not contain the nonce.

        Args:
            nonce: Nonce of the client, 32 bytes.
            model: Not used.

        Raises:
            UsageError: If the nonce is not 32 bytes.
        """
        require_size("nonce", nonce, NONCE_SIZE)
        return (Question(f"{_TARGET}?nonce={nonce.hex()}"),)

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of a document; its evidence is verified later.

        Args:
            answers: Body of the only answer.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection, whose key must be the one in the document; None: the
                key is not compared.
            model: Not used.

        Raises:
            FormatError: If the document is malformed, or its parts contradict each other.
            ServiceError: If the document is not for this nonce and TLS key, names no key, or its
                signature is not valid.
            UsageError: If there is not exactly one answer, or the nonce is not 32 bytes.
        """
        require_size("nonce", nonce, NONCE_SIZE)
        document = tinfoil_documents.read_tinfoil_document(only_answer(answers), nonce)
        if seen is None:
            return _claims(document, None, self.host)
        names = (seen.host, *_names_of(seen.certificate))
        return _claims(document, seen.spki_sha256, ROUTER if ROUTER in names else seen.host)


class TinfoilBundle(_SealedToEnclave):
    """An enclave whose document comes from atc.tinfoil.sh, beside its TLS certificate.

    The bundle can be copied and served by any host, at any time later: it shows only which key is
    the enclave's.

    Args:
        domain: Host name that the bundle must be about.
    """

    name: str = "tinfoil-bundle"
    where: Where = "apart"

    def __init__(self, domain: str = ROUTER) -> None:
        self.domain: str = domain

    def recognizes(self, host: str) -> bool:
        """Return False, whatever `host` is: a document from the enclave itself is preferred."""
        return False

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for the bundle of the router.

        `nonce` and `model` are not used.
        """
        return (Question("/attestation", origin=_BUNDLES),)

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of a bundle; its evidence is verified later.

        Args:
            answers: Body of the only answer.
            nonce: Not used: bundles contain none.
            seen: TLS peer of the connection, whose key must be the one in the bundle; None: the key
                is not compared.
            model: Not used.

        Raises:
            FormatError: If the bundle is malformed, or document and certificate contradict each
                other.
            ServiceError: If the bundle is not for this domain and TLS key.
            UsageError: If there is not exactly one answer.
        """
        bundle = read_tinfoil_bundle(only_answer(answers))
        if bundle.domain != self.domain:
            message = f"{_BUNDLE}: domain must be {self.domain}, not {shown(bundle.domain)}"
            raise ServiceError(message, reason="other_origin")
        key = None if seen is None else seen.spki_sha256
        return _claims(bundle.document, key, bundle.domain)


class BundleContent(NamedTuple):
    """A decoded bundle whose document and certificate agree; its evidence is not verified."""

    domain: str
    document: tinfoil_documents.TinfoilDocument
    digest: bytes  # of the release, 32 bytes, as stated
    certificate: Certificate  # of the TLS key


def read_tinfoil_bundle(answer: bytes) -> BundleContent:
    """Decode a bundle of atc.tinfoil.sh, and compare its document and certificate.

    The certificate's DNS names spell the HPKE key and the hash of the document, so that they are in
    public logs of certificates, too.

    Args:
        answer: The bundle, JSON as received.

    Raises:
        FormatError: If the bundle is malformed, or the certificate does not have its domain, TLS
            key, HPKE key or document.
    """
    members = read_answer_object(answer, _BUNDLE)
    required = ("domain", "enclaveAttestationReport", "digest", "sigstoreBundle", "enclaveCert")
    members.check(required, ("vcek", "releaseTag"))
    report = members.object("enclaveAttestationReport")
    document = tinfoil_documents.read_v2(report)
    members.object("sigstoreBundle")
    certificate = read_certificate(members.text("enclaveCert"))
    domain = members.text("domain")
    with reading_x509():
        names = certificate.alt_names
    hashed = sha256((report.text("format") + report.text("body")).encode())
    if domain not in names:
        raise _differs("domain")
    if not hmac.compare_digest(sha256(certificate.spki_der), document.report_data[:32]):
        raise _differs("TLS key")
    if not hmac.compare_digest(_spelled(names, "hpke", domain), document.report_data[32:]):
        raise _differs("HPKE key")
    if not hmac.compare_digest(_spelled(names, "hatt", domain), hashed.hex().encode()):
        raise _differs("hash of the document")
    vcek = (members.base64("vcek"),) if members.get("vcek") else ()
    document = document._replace(snp_certificates=vcek, valid_until=certificate.valid_until)
    return BundleContent(domain, document, members.hex("digest", 32), certificate)


def _spelled(names: Sequence[str], kind: str, domain: str) -> bytes:
    """Return the bytes in DNS names of the form `NN<base32>.KIND.<domain or a parent of it>`.

    The base32 texts are joined in the order of their numbers NN, which count from 00.

    Args:
        names: DNS names of the certificate; those of other forms are not used.
        kind: `hpke` (key) or `hatt` (hash of the document).
        domain: Host name of the bundle.

    Raises:
        FormatError: If such names are missing, or numbers or text are not in order.
    """
    chunks: dict[str, str] = {}
    for name in names:
        found = _CHUNK.fullmatch(name)
        if found is None or found["kind"] != kind:
            continue
        if found["number"] in chunks or not f".{domain}".endswith(f".{found['parent']}"):
            raise _bad_names(kind)
        chunks[found["number"]] = found["text"]
    numbers = sorted(chunks)
    if not numbers or numbers != [f"{at:02}" for at in range(len(numbers))]:
        raise _bad_names(kind)
    text = "".join(chunks[number] for number in numbers).upper()
    try:
        spelled = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error as error:
        raise _bad_names(kind) from error
    if base64.b32encode(spelled).decode().rstrip("=") != text:
        raise _bad_names(kind)
    return spelled


def _bad_names(kind: str) -> FormatError:
    message = f"{_BUNDLE}: enclaveCert: must have DNS names for {kind}, numbered from 00"
    return FormatError(message, reason="inconsistent")


def _differs(what: str) -> FormatError:
    message = f"{_BUNDLE}: enclaveCert: must have the {what} of this bundle"
    return FormatError(message, reason="inconsistent")


def _canonical(host: str) -> str:
    return host.lower().removesuffix(".")


def _names_of(certificate: bytes) -> tuple[str, ...]:
    """Return the DNS names of a peer's certificate (DER); none if it cannot be read.

    They identify the router of Tinfoil also under a host name that is not its usual one.
    """
    try:
        found = read_certificate(certificate)
        with reading_x509():
            return found.alt_names
    except FormatError:
        return ()


def _claims(document: tinfoil_documents.TinfoilDocument, seen: bytes | None, host: str) -> Claims:
    """Return the claims of a document.

    Args:
        document: The decoded document.
        seen: SHA-256 of the observed TLS key's SPKI; None without a connection.
        host: Host name, which decides whether the enclave is Tinfoil's router.

    Raises:
        ServiceError: If the document names a different TLS key, or no key at all.
    """
    if (
        seen is not None
        and document.tls is not None
        and not hmac.compare_digest(document.tls, seen)
    ):
        message = f"{_WHAT}: document must name the TLS key of the connection, {seen.hex()}"
        raise ServiceError(message, reason="other_key")
    host = _canonical(host)
    is_of = "router" if f".{host}".endswith(f".{ROUTER}") else "server"
    bindings: tuple[Binding, ...] = ()
    if document.tls is not None:
        bindings += (Binding("tls-spki", document.tls, is_of),)
    if document.hpke is not None:
        bindings += (Binding("hpke", document.hpke, is_of),)
    if not bindings:
        message = f"{_WHAT}: document must name a TLS key, or a key for HPKE"
        raise ServiceError(message, reason="no_channel")
    old = document.generation == "v2"
    gaps = (_NO_RELEASE, *((_NO_MODEL,) if is_of == "router" else ()))
    return Claims(
        machines=(
            Machine(
                is_of,
                document.evidence,
                document.report_data,
                document.gpu,
                document.snp_certificates,
            ),
        ),
        bindings=bindings,
        freshness="key possession" if old else "nonce",
        code="policy",
        not_proven=(*gaps, _NO_NONCE) if old else gaps,
        valid_until=document.valid_until,
        keys=dict(document.keys),
    )


SERVICES: Final = (Tinfoil(), TinfoilBundle())
"""Services of this module, for the registry."""
