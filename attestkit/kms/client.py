"""Client of a KMS: key release, certificates and public keys (docs/guides/keys.md).

For each URL the client requests the temporary CA without verifying the server, compares the root
in the answer with the pins, and makes every other call on a connection that trusts this root alone.
Keys are requested only after that, after the server's certificate is known to be that of a KMS, and
after its evidence is verified, if a verifier is given.
"""

import hmac
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from attestkit._argument_checks import require_bytes, utf8, wrong_type
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import certificate_pem
from attestkit._crypto.zeroize import wipe
from attestkit._system.clock import current_time
from attestkit.attestation import Attestation
from attestkit.attestation.evidence_maker import EvidenceMaker
from attestkit.attestation.launch.vm_config import read_os_image_hash
from attestkit.dstack.env_encryption import verify_env_encrypt_public_key
from attestkit.errors import FormatError, KmsError, UsageError, VerificationError
from attestkit.keys import AppKeys, KmsProvider
from attestkit.kms.answers import (
    FetchedKeys,
    KmsMeta,
    ReceivedKeys,
    SignedEnvKey,
    check_received_keys,
    malformed_answer,
    not_proven,
    read_certificate_chain,
    read_only_certificate,
)
from attestkit.kms.cert_request import CertRequest, sign_cert_request
from attestkit.kms.failover import try_each_url
from attestkit.kms.https_call import (
    AttestedKey,
    ClientCa,
    TimeLimits,
    anonymous_context,
    call_kms,
    rooted_context,
)
from attestkit.kms.root import KmsRoot, find_root, require_roots
from attestkit.kms.tls_chain import APP_CHAIN, check_usage, verify_app_certificate, verify_evidence
from attestkit.kms.url import KmsUrl, parse_kms_url
from attestkit.ra_tls.issuance import Issued

if TYPE_CHECKING:
    from attestkit.simulated_roots import SimulatedRoots
    from attestkit.verifier import AttestationResult, Verifier

MAX_URLS: Final = 16
"""Maximum number of URLs of a client."""

_logger = logging.getLogger("attestkit.kms")
_API_VERSION: Final = 1  # of GetAppKey
_CERT_VERSION: Final = 2  # of SignCert
_SIGN_URLS: Final = 2  # SignCert is requested once more at most


class _Server(NamedTuple):
    """A KMS at one URL, whose root CA is a pinned one."""

    url: KmsUrl
    temp_ca: ClientCa
    roots: tuple[KmsRoot, ...]  # the pinned ones with the CA key of this server


class KmsClient:
    """Client of one KMS at one or several URLs, which are tried in order. Thread-safe.

    Args:
        urls: URLs of the KMS; `/prpc` is appended if missing.
        roots: Roots of the trusted KMSs, from a source that is neither the host nor the KMS, or
            `SimulatedRoots`. The string "first-use" accepts any KMS, so host and network can choose
            one; a warning is logged.
        attester: Attests this guest; only `get_app_keys` and `fetch_app_keys` need it.
        app_id: Expected id of this app, 20 bytes; None is that in the guest's own evidence.
        vm_config: Text of the member `vm_config` of the sys-config; if it is empty, the KMS uses
            the one in the evidence.
        verifier: Verifier of the KMS's own evidence, which is then required.
        limits: Timeouts of connecting (5 s) and of a call (60 s).
        now: Returns the time in seconds since 1970.
        random: Returns a number of random bytes.

    Raises:
        KmsError: If there is no URL (reason `no_urls`).
        ConfigError: If a URL is not valid.
        UsageError: If an argument is missing or malformed, or there are over 16 URLs.
    """

    def __init__(
        self,
        urls: str | Iterable[str],
        *,
        roots: "Iterable[KmsRoot] | SimulatedRoots | Literal['first-use']",
        attester: EvidenceMaker | None = None,
        app_id: bytes | None = None,
        vm_config: str = "",
        verifier: "Verifier | None" = None,
        limits: TimeLimits | None = None,
        now: Callable[[], float] = current_time,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._urls = _checked_urls(urls)
        self._roots = None if roots == "first-use" else require_roots(roots)
        if app_id is not None:
            require_bytes("app_id", app_id, 20)
        if not isinstance(vm_config, str):
            raise wrong_type("vm_config", "text", vm_config)
        utf8(vm_config, "vm_config", UsageError)
        if limits is not None and not isinstance(limits, TimeLimits):
            raise wrong_type("limits", "TimeLimits", limits)
        if verifier is not None and not hasattr(verifier, "verify"):
            raise wrong_type("verifier", "a Verifier", verifier)
        self._attester = attester
        self._app_id = app_id
        self._vm_config = vm_config
        self._verifier = verifier
        self._limits = limits or TimeLimits()
        self._now = now
        self._random = random
        if self._roots is None:
            _logger.warning("KMS root not pinned: any KMS that the host names is trusted")

    def get_app_keys(self) -> AppKeys:
        """Return the keys of this app; see `fetch_app_keys`, which returns more."""
        return self.fetch_app_keys().app_keys

    def fetch_app_keys(self) -> FetchedKeys:
        """Request the keys of this app, and check them.

        No event is emitted and no file written.

        Raises:
            KmsError: If no URL released keys that pass all checks; `failures` has the error of
                each URL.
            UsageError: If there is no attester.
            FormatError: If the VM configuration is malformed.
            BackendError: And other errors of the attester.
        """
        if self._attester is None:
            message = "attester: missing; pass one, because keys are released to evidence only"
            raise UsageError(message, reason="missing")
        # Before the loop, in which an error of this guest would be taken for one of the KMS.
        key = AttestedKey(self._attester.attest, self._random)
        app_id = self._own_app_id(key.evidence)
        config = self._vm_config or key.evidence.config
        image_hash = read_os_image_hash(config) if config else b""
        fetch = partial(self._fetch, key, app_id, image_hash)
        return try_each_url(self._urls, "GetAppKey", fetch)

    def get_meta(self) -> KmsMeta:
        """Return what the KMS reports of itself; its root keys are compared with the pins.

        Raises:
            KmsError: If no URL gave a valid answer.
        """
        return try_each_url(self._urls, "GetMeta", self._get_meta)

    def env_public_key(self, app_id: bytes) -> bytes:
        """Return an app's X25519 public key for encrypted environments, 32 bytes.

        The KMS's signature over key, app and time is verified with the pinned secp256k1 key.

        Args:
            app_id: Id of the app, 20 bytes.

        Raises:
            KmsError: If no URL gave a valid answer.
            UsageError: If the app id does not have 20 bytes, or no root has a secp256k1 key, as
                with "first-use".
        """
        require_bytes("app_id", app_id, 20)
        if not any(root.k256_public_key for root in self._roots or ()):
            message = "roots: one must have a secp256k1 key, which signs the public keys of apps"
            raise UsageError(message, reason="missing")
        return try_each_url(
            self._urls, "GetAppEnvEncryptPubKey", partial(self._env_public_key, app_id)
        )

    def sign_certificate(self, request: CertRequest, key: P256Key) -> tuple[str, ...]:
        """Request a certificate (SignCert); return its chain in PEM: certificate, app CA, root.

        If the first URL fails, the second is tried, and no others.

        Args:
            request: The request, with evidence over the public key.
            key: The key of the request, which signs it.

        Raises:
            KmsError: If no URL returned a valid chain for this key and app, or the evidence in the
                request is not of the client's `app_id`.
            UsageError: If the request cannot be encoded, or `key` is not that of the request.
        """
        encoded, signature = sign_cert_request(request, key)
        app_id = self._own_app_id(request.attested())
        arguments = {
            "api_version": _CERT_VERSION,
            "csr": encoded.hex(),
            "signature": signature.hex(),
            "vm_config": self._vm_config,
        }

        def sign(url: KmsUrl) -> tuple[str, ...]:
            server = self._find(url)
            chain = read_certificate_chain(self._call(server, "SignCert", arguments)[0])
            return self._check_chain(chain, server, app_id, request.pubkey)

        return try_each_url(self._urls[:_SIGN_URLS], "SignCert", sign)

    def __repr__(self) -> str:
        return f"KmsClient({[url.base for url in self._urls]})"

    def _find(self, url: KmsUrl) -> _Server:
        """Request temporary CA and root CA of a KMS; check that the root is pinned."""
        context = anonymous_context()
        answer = call_kms(url, "GetTempCaCert", {}, context, limits=self._limits)
        try:
            temp_ca = ClientCa.from_json(answer)
        except FormatError as error:
            raise malformed_answer(error, url, "GetTempCaCert") from error
        spki = temp_ca.root.spki_der
        if self._roots is None:
            return _Server(url, temp_ca, (_first_root(spki),))
        roots = find_root(self._roots, spki)
        if not roots:
            message = (
                f"the key of its root CA is not a pinned one: {spki[:200].hex()}; check the URL, "
                "or pin this root (KmsRoot, --kms-root) if the owner of the KMS confirms it"
            )
            raise KmsError(message, reason="wrong_root")
        return _Server(url, temp_ca, roots)

    def _fetch(
        self, key: AttestedKey, app_id: bytes, image_hash: bytes, url: KmsUrl
    ) -> FetchedKeys:
        server = self._find(url)
        issued = key.certify(server.temp_ca, self._now())
        arguments = {"api_version": _API_VERSION, "vm_config": self._vm_config}
        answer, evidence = self._call(server, "GetAppKey", arguments, issued)
        try:
            keys = ReceivedKeys.from_json(answer)
        finally:
            wipe(answer)
        try:
            return self._accept(keys, server, app_id, image_hash, evidence)
        finally:
            keys.wipe()

    def _accept(
        self,
        keys: ReceivedKeys,
        server: _Server,
        app_id: bytes,
        image_hash: bytes,
        evidence: "AttestationResult | None",
    ) -> FetchedKeys:
        k256_root = check_received_keys(
            keys,
            app_id=app_id,
            root=server.temp_ca.root,
            roots=server.roots,
            image_hash=image_hash,
        )
        root = KmsRoot(server.roots[0].ca_spki, k256_root)
        temp_ca = server.temp_ca
        app_keys = AppKeys(
            k256_key=keys.k256_key,
            k256_signature=keys.k256_signature,
            env_crypt_key=keys.env_crypt_key,
            disk_crypt_key=keys.disk_crypt_key,
            gateway_app_id=keys.gateway_app_id,
            ca_cert=temp_ca.root.pem,
            ca_key=None,
            key_provider="kms",
            key_provider_id=root.provider_id,
            kms_provider=KmsProvider(
                server.url.base, temp_ca.key.pkcs8_pem, temp_ca.certificate.pem
            ),
        )
        unproven = not_proven(root, self._roots)
        return FetchedKeys(app_keys, keys.os_image_hash, root, server.url.base, evidence, unproven)

    def _get_meta(self, url: KmsUrl) -> KmsMeta:
        server = self._find(url)
        meta = KmsMeta.from_json(self._call(server, "GetMeta", {})[0])
        spki = read_only_certificate(meta.ca_cert).spki_der
        pinned = [root.is_of_ca(spki) for root in server.roots]
        allowed = [root.may_be_k256(meta.k256_public_key) for root in server.roots]
        if not all(pinned) or not any(allowed):
            message = (
                "GetMeta must name the pinned root keys, and names others; check the pin with the "
                "owner of the KMS"
            )
            raise KmsError(message, reason="wrong_root")
        return meta

    def _env_public_key(self, app_id: bytes, url: KmsUrl) -> bytes:
        server = self._find(url)
        arguments = {"app_id": app_id.hex()}
        found = SignedEnvKey.from_json(self._call(server, "GetAppEnvEncryptPubKey", arguments)[0])
        if len(found.public_key) != 32:
            message = f"public_key: must have 32 bytes, not {len(found.public_key)}"
            raise KmsError(message, reason="wrong_size")
        signer = verify_env_encrypt_public_key(
            found.public_key,
            found.signature_v1,
            app_id.hex(),
            found.timestamp,
            now=int(self._now()),
        )
        pins = [root.k256_public_key for root in server.roots if root.k256_public_key]
        recovered = bytes.fromhex(signer[2:]) if signer else b""
        if not any(hmac.compare_digest(pin, recovered) for pin in pins):
            message = "signature_v1: must be by the pinned key, for this app and time"
            raise KmsError(message, reason="bad_signature")
        return found.public_key

    def _call(
        self,
        server: _Server,
        method: str,
        arguments: Mapping[str, object],
        issued: Issued | None = None,
    ) -> "tuple[bytes, AttestationResult | None]":
        """Call a method of a verified server; return its answer's body and its verified evidence.

        The evidence is None without a verifier. `arguments` are the JSON object that is sent;
        `issued` is key and certificate of the client, None for an anonymous one.
        """
        verified: list[AttestationResult] = []

        def check_server(certificate: bytes) -> None:
            check_usage(certificate)
            if self._verifier is not None:
                verified.append(verify_evidence(certificate, self._verifier))

        answer = call_kms(
            server.url,
            method,
            arguments,
            rooted_context(server.temp_ca.root, issued),
            limits=self._limits,
            check_server=check_server,
        )
        return answer, verified[0] if verified else None

    def _own_app_id(self, evidence: Attestation) -> bytes:
        """Return the app id in this guest's evidence, which is the one that a KMS reads."""
        found = evidence.read_app_info(key_time=True).app_id
        if len(found) != 20:
            message = "evidence of this guest: must name an app before boot-mr-done"
            raise KmsError(message, reason="wrong_identity")
        if self._app_id is not None and not hmac.compare_digest(found, self._app_id):
            message = (
                f"evidence of this guest: app {found.hex()}, must be {self._app_id.hex()}; "
                "pass this guest's app, or boot the other one"
            )
            raise KmsError(message, reason="wrong_identity")
        return found

    def _check_chain(
        self, chain: Sequence[str], server: _Server, app_id: bytes, spki: bytes
    ) -> tuple[str, ...]:
        """Check `chain`, the answer to SignCert in PEM; return it without text around PEM.

        The certificate must be of the app `app_id` (20 bytes) and the key `spki` (DER).
        """
        try:
            found = verify_app_certificate(
                chain, app_id=app_id, kms_roots=server.roots, now=self._now()
            )
        except VerificationError as error:
            raise APP_CHAIN.failed(error) from error
        if not found.names_app or not hmac.compare_digest(found.spki, spki):
            raise APP_CHAIN.failed("the certificate must be for the requested key, and name an app")
        return tuple(map(certificate_pem, split_pem("\n".join(chain))))


def _checked_urls(urls: object) -> tuple[KmsUrl, ...]:
    if isinstance(urls, bytes) or not isinstance(urls, Iterable):
        raise wrong_type("urls", "a URL or a collection of URLs", urls)
    texts = [urls] if isinstance(urls, str) else list(islice(urls, MAX_URLS + 1))
    if not texts:
        raise KmsError("urls: No KMS URLs are set; pass one", reason="no_urls")
    if len(texts) > MAX_URLS:
        raise UsageError(f"urls: over {MAX_URLS} URLs; pass fewer", reason="too_many")
    return tuple([parse_kms_url(text) for text in texts])


def _first_root(spki: bytes) -> KmsRoot:
    try:
        return KmsRoot(spki)
    except UsageError as error:
        raise KmsError(f"root CA sent by the KMS: {error}", reason="malformed") from error
