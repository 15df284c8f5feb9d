"""Tinfoil's documents of each generation about a simulated TEE, with a TLS key of the test's."""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.client.services.service import Claims
from attestkit.client.services.tinfoil.tinfoil import Tinfoil
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import AttestKitError, FormatError, ServiceError, VerificationError
from attestkit.testing import SimulatedTee
from tests.pki.certificates import name_of

NONCE: Final = bytes(range(32, 64))
HPKE: Final = bytes(range(64, 96))
DOMAIN: Final = "inference.tinfoil.sh"
V3: Final = "https://tinfoil.sh/predicate/attestation/v3"
LABEL: Final = b"https://tinfoil.sh/report-data/v1"
NOT_AFTER: Final = datetime(2046, 1, 1, tzinfo=timezone.utc)

Change = Callable[[dict[str, Any]], object]


def no_change(_: dict[str, Any]) -> None:
    """Leave a document as it is."""


def compact(value: object) -> str:
    """Return JSON as Go writes it, without spaces."""
    return json.dumps(value, separators=(",", ":"))


def b64(data: bytes) -> str:
    """Return standard base64."""
    return base64.b64encode(data).decode()


def spell(data: bytes, kind: str) -> list[str]:
    """Return DNS names that spell bytes in base32, in numbered chunks."""
    text = base64.b32encode(data).decode().lower().rstrip("=")
    chunks = [text[at : at + 45] for at in range(0, len(text), 45)]
    return [f"{at:02}{chunk}.{kind}.tinfoil.sh" for at, chunk in enumerate(chunks)]


class Enclave:
    """A simulated TEE with a TLS key, which answers as Tinfoil's enclaves do.

    Args:
        tee: The TEE.
        platform: sev-snp or tdx.
        scalar: Private part of the TLS key.
        pem: Private TLS key in PEM, instead.
    """

    def __init__(
        self, tee: SimulatedTee, platform: str, scalar: int = 7, *, pem: bytes | None = None
    ) -> None:
        self.tee = tee
        self.platform = platform
        self.nonce, self.hpke = NONCE, HPKE
        made = ec.derive_private_key(scalar, ec.SECP384R1())
        self.key: Any = made if pem is None else serialization.load_pem_private_key(pem, None)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.spki = self.key.public_key().public_bytes(serialization.Encoding.DER, form)
        self.tls = hashlib.sha256(self.spki).digest()

    def verify(self, claims: Claims) -> None:
        """Verify the evidence of claims, with the certificates that documents lack."""
        [machine] = claims.machines
        platform = self.tee.attest(nonce=bytes(8)).evidence.platform
        chain = platform.cert_chain if isinstance(platform, SevSnp) else ()
        data = machine.report_data
        self.tee.verify(machine.evidence, report_data=data, snp_certificates=chain)

    def certificate(self, *names: str) -> x509.Certificate:
        """Return a certificate of the TLS key with DNS names."""
        builder = x509.CertificateBuilder(name_of(DOMAIN), name_of(DOMAIN), self.key.public_key())
        builder = builder.serial_number(1).not_valid_before(
            datetime(2026, 1, 1, tzinfo=timezone.utc)
        )
        builder = builder.not_valid_after(NOT_AFTER).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
        return builder.sign(self.key, hashes.SHA256())

    def pem(self, *names: str) -> str:
        """Return the certificate in PEM."""
        return self.certificate(*names).public_bytes(serialization.Encoding.PEM).decode()

    def peer(self, host: str = DOMAIN) -> ObservedPeer:
        """Return the enclave as the peer of a connection."""
        return ObservedPeer(host, 443, b"", self.spki)

    def v2(self, change: Change = no_change) -> bytes:
        """Return a document of v2."""
        evidence = self.tee.raw_quote(self.tls + self.hpke)
        document = {
            "format": f"https://tinfoil.sh/predicate/{self.platform}-guest/v2",
            "body": b64(gzip.compress(evidence, mtime=0)),
        }
        change(document)
        return compact(document).encode()

    def bundle(self, change: Change = no_change) -> bytes:
        """Return a bundle of a document of v2, without Sigstore's part."""
        report = json.loads(self.v2())
        hashed = hashlib.sha256((report["format"] + report["body"]).encode()).hexdigest().encode()
        bundle = {
            "domain": DOMAIN,
            "enclaveAttestationReport": report,
            "digest": "ab" * 32,
            "sigstoreBundle": {},
            "enclaveCert": self.pem(DOMAIN, *spell(self.hpke, "hpke"), *spell(hashed, "hatt")),
        }
        change(bundle)
        return compact(bundle).encode()

    def june(
        self,
        change: Change = no_change,
        *,
        gpu: object = None,
        tail: str = "\n",
        after: Change = no_change,
    ) -> bytes:
        """Return a document of June 2026.

        Args:
            change: Changes the members before they are signed.
            gpu: Member of this name.
            tail: Follows the document.
            after: Changes the members after they are signed.
        """
        stated = {
            "tls_key_fp": self.tls.hex(),
            "hpke_key": self.hpke.hex(),
            "nonce": self.nonce.hex(),
        }
        hashed = self.tls + self.hpke + self.nonce
        if gpu is not None:
            stated["gpu_evidence_hash"] = hashlib.sha256(compact(gpu).encode()).hexdigest()
            hashed += bytes.fromhex(stated["gpu_evidence_hash"])
        report = self.tee.raw_quote(hashlib.sha256(hashed).digest())
        document: dict[str, Any] = {
            "format": V3,
            "report_data": stated,
            "cpu": {"platform": self.platform, "report": b64(report)},
            **({} if gpu is None else {"gpu": gpu}),
            "certificate": self.pem(DOMAIN),
            "signature": "",
        }
        change(document)
        text = compact(document).encode()
        if document.get("signature") == "":
            document["signature"] = b64(self.key.sign(text, ec.ECDSA(hashes.SHA256())))
        after(document)
        return (compact(document) + tail).encode()

    def august(
        self,
        change: Change = no_change,
        *,
        keys: list[dict[str, Any]] | None = None,
        devices: list[dict[str, Any]] | None = None,
        label: bytes = LABEL,
        sections: Change = no_change,
    ) -> bytes:
        """Return a document of August 2026.

        Args:
            change: Changes the members of the finished document.
            keys: Items of the section crypto_material.
            devices: Items of the section device_evidence.
            label: First bytes that are hashed.
            sections: Changes the two sections, which are hashed then.
        """
        content: dict[str, Any] = {
            "crypto_material": section("crypto-material", self.keys() if keys is None else keys),
            "device_evidence": section("device-evidence", devices or []),
        }
        sections(content)
        raw = {name: compact(value).encode() for name, value in content.items()}
        digests = {name: hashlib.sha256(data) for name, data in raw.items()}
        hashed = label + self.nonce + b"".join(digest.digest() for digest in digests.values())
        data = hashlib.sha256(hashed).digest()
        kind = {"sev-snp": "sev-snp-report", "tdx": "tdx-quote"}[self.platform]
        document = {
            "format": V3,
            "challenge": {
                "nonce": self.nonce.hex(),
                "report_data": data.hex() + "00" * 32,
                "report_data_algorithm": LABEL.decode(),
            },
            "cpu_evidence": {
                "format": f"https://tinfoil.sh/format/{kind}/v1",
                "report_base64": b64(self.tee.raw_quote(data)),
                "endorsed": {f"{name}_hash": found.hexdigest() for name, found in digests.items()},
            },
            **{name: b64(data) for name, data in raw.items()},
            "collateral": [],
        }
        change(document)
        return compact(document).encode()

    def keys(self) -> list[dict[str, Any]]:
        """Return the items of crypto_material: the TLS key and that of HPKE."""
        where = "https://tinfoil.sh/key"
        return [
            {"id": "tls", "format": f"{where}/spki-fp-sha256/v1", "data": self.tls.hex()},
            {"id": "hpke", "format": f"{where}/x25519-hpke/v1", "data": self.hpke.hex()},
        ]


def section(kind: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a section of a document of August."""
    return {"format": f"https://tinfoil.sh/{kind}/v1", "items": items}


def leaves(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all texts in decoded JSON."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in leaves(item, (*path, name))]
    if isinstance(value, list):
        return [found for at, item in enumerate(value) for found in leaves(item, (*path, at))]
    return [path] if isinstance(value, str) else []


def replace_leaf(document: Any, path: tuple[Any, ...], change: Callable[[str], str]) -> None:
    """Change the text at a path of decoded JSON in place."""
    for step in path[:-1]:
        document = document[step]
    document[path[-1]] = change(document[path[-1]])


def other_digit(text: str) -> str:
    """Return the text with another character in its middle, of the same alphabet."""
    at = len(text) // 2
    return text[:at] + ("b" if text[at] != "b" else "c") + text[at + 1 :]


def read(enclave: Enclave, answer: bytes) -> Claims:
    """Return the claims of an answer of an enclave on its own connection."""
    return Tinfoil().read((answer,), NONCE, enclave.peer(), None)


def refusal(enclave: Enclave, answer: bytes) -> AttestKitError:
    """Return the error by which an answer is refused, by its reader or by the verifier."""
    with pytest.raises((FormatError, ServiceError, VerificationError)) as caught:
        enclave.verify(read(enclave, answer))
    return caught.value


def setting(*path: Any, to: Any) -> Change:
    """Return a change that sets what is at a path; a function gets the old value."""

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to(place[path[-1]]) if callable(to) else to

    return change


def without(*path: Any) -> Change:
    """Return a change that removes what is at a path."""

    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


def changed(answer: str, change: Change) -> bytes:
    """Return an answer with a change that is not signed."""
    document = json.loads(answer)
    change(document)
    return compact(document).encode()
