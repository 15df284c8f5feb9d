"""Simulated PKIs of GPUs: certificates of devices and of RIMs, and their OCSP responders.

Names are those of NVIDIA's certificates, but for the vendor's: the roots say that they are
simulated, and every organisation is attestkit's. Every byte is a function of the seed.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Final, NamedTuple

from attestkit._crypto.der import encode_integer, encode_sequence
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.cert_path import PathCertificate, read_path_certificate
from attestkit._crypto.x509.ocsp.answer_writer import (
    OcspResponder,
    write_ocsp_answer,
    write_ocsp_error,
)
from attestkit._crypto.x509.ocsp.request import CertId, cert_id, read_ocsp_request
from attestkit._crypto.x509.simulated import gpu_extensions
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer, Window, key_id
from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    Extension,
    encode_name,
    issue_cloud_leaf,
)
from attestkit.backends.simulator.gpu.deviations import OcspFault
from attestkit.backends.simulator.gpu.gpu_reports import DeviceModel
from attestkit.backends.simulator.pki.cloud_pki import (
    VALIDITY,
    CloudRoot,
    Derive,
    issue_ca,
    p384_key,
    serial_number,
)
from attestkit.errors import FormatError

OCSP_URL: Final = "http://ocsp.attestkit.invalid"
"""Address in certificates; the responder is beside the simulator's PCCS."""

SALT: Final = b"attestkit/simulator/gpu/v1"
"""HKDF salt of all bytes that are derived from the seed of GPUs."""

_DEVICE_VALIDITY: Final = Window(
    datetime(2020, 10, 17, tzinfo=timezone.utc),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
)
_EXPIRED: Final = Window(VALIDITY.start, datetime(2024, 6, 1, tzinfo=timezone.utc))
_ACCESS: Final = gpu_extensions.encode_ocsp_access(OCSP_URL)
_VENDOR: Final = "NVIDIA"  # in fields that devices of the vendor have, not in names of issuers


class DeviceCredentials(NamedTuple):
    """Keys and certificates of a simulated GPU or NVSwitch."""

    model: DeviceModel
    pdi: bytes  # 8 bytes
    fwid: bytes  # 48 bytes, of the DICE extension
    key: P384Key  # of the leaf
    chain: tuple[bytes, ...]  # DER: leaf, BROM, provisioner, identity, root


SignerCredentials = tuple[P384Key, tuple[bytes, ...]]
"""A key and its certificates in DER, leaf first."""


class GpuPki:
    """Device root and RIM root of a seed, and the certificates below them, each issued once."""

    def __init__(self, derive: Derive) -> None:
        """Issue the root certificates.

        Args:
            derive: Returns secret bytes for a label and a size.
        """
        self._derive = derive
        # By label, subject and issuer: devices of a label may be of several models.
        self._issued: dict[tuple[str, bytes, bytes], CloudRoot] = {}
        self._devices: dict[tuple[str, DeviceModel, str | None], DeviceCredentials] = {}
        self._signers: dict[tuple[object, ...], SignerCredentials] = {}
        self.device_root: CloudRoot = self._issue(
            "root/device", "attestkit simulated GPU device root"
        )
        self.rim_root: CloudRoot = self._issue("root/rim", "attestkit simulated GPU RIM root")

    @property
    def roots(self) -> tuple[bytes, bytes]:
        """The root certificates (DER) of devices and of RIMs."""
        return self.device_root.der, self.rim_root.der

    def device(
        self, label: str, model: DeviceModel, *, device_key: str | None = None
    ) -> DeviceCredentials:
        """Return the credentials of a device, issued at the first call.

        Args:
            label: Names the device in the derivation of its keys and its lasting identifier (PDI).
            model: Its model.
            device_key: Label of another device, whose key the DICE extension has (Hopper, LS10).
                None: this device's own key.
        """
        if found := self._devices.get((label, model, device_key)):
            return found
        provisioner = self.provisioner(model)
        brom = self.brom(label, model)
        other = brom if device_key is None else self.brom(device_key, model)
        key = p384_key(self._derive, f"{label}/leaf")
        fwid = self._derive(f"fwid/{model.product}", 48)
        extensions = (
            gpu_extensions.encode_device_name(
                f"{_VENDOR}:{model.chip}:{self.pdi(label).hex().upper()}"
            ),
            _dice(model, other.authority.spki, fwid),
        )
        leaf = _issue_leaf(brom, key.spki, model, extensions)
        identity = self.identity(model)
        chain = (leaf, brom.der, provisioner.der, identity.der, self.device_root.der)
        made = DeviceCredentials(model, self.pdi(label), fwid, key, chain)
        self._devices[label, model, device_key] = made
        return made

    def pdi(self, label: str) -> bytes:
        """Return the lasting identifier (PDI) of the device `label`, 8 bytes."""
        return self._derive(f"pdi/{label}", 8)

    def identity(self, model: DeviceModel) -> CloudRoot:
        """Return the product identity CA of a model: key and certificate, issued by the root."""
        common_name = f"Simulated {model.identity} Identity"
        return self._issue(f"identity/{model.identity}", common_name, self.device_root)

    def provisioner(self, model: DeviceModel) -> CloudRoot:
        """Return the provisioner CA of a model: key and certificate, issued by `identity`."""
        common_name = f"Simulated {model.chip} Provisioner ICA {model.provisioner}"
        return self._issue(f"provisioner/{model.chip}", common_name, self.identity(model))

    def brom(self, label: str, model: DeviceModel) -> CloudRoot:
        """Return the CA of the device `label`; its certificate's serial number has the PDI."""
        serial = bytes([model.serial_prefix]) + self.pdi(label)
        common_name = f"{model.chip} A01 {model.processor} BROM"
        return self._issue(f"brom/{label}", common_name, self.provisioner(model), serial)

    def rim_ca(self, model: DeviceModel) -> CloudRoot:
        """Return the CA of the RIMs of a model's product, issued by the RIM root."""
        common_name = f"Simulated Reference Value {model.product} CA"
        return self._issue(f"rim-ca/{model.product}", common_name, self.rim_root)

    def rim_l3(self, model: DeviceModel) -> CloudRoot:
        """Return the CA below `rim_ca`, which issues the certificate of a product's RIM signer."""
        common_name = f"Simulated Reference Value L3 {model.product} 001"
        return self._issue(f"rim-l3/{model.product}", common_name, self.rim_ca(model))

    def rim_signer(self, model: DeviceModel, *, expired: bool = False) -> SignerCredentials:
        """Return the key of the RIM signer of a product, and its certificates (DER), leaf first.

        Args:
            model: Model of the product.
            expired: Whether the signer's certificate ended in 2024.
        """
        label = f"rim-signer/{model.product}"
        if found := self._signers.get((model, expired)):
            return found
        key, l3 = p384_key(self._derive, label), self.rim_l3(model)
        signer = issue_cloud_leaf(
            (_name("Simulated RIM L4 Signer"), key.spki),
            l3.authority,
            serial=serial_number(self._derive, f"{label}/{expired}"),
            validity=_EXPIRED if expired else VALIDITY,
            extensions=(_ACCESS,),
        )
        made = key, (signer, l3.der, self.rim_ca(model).der, self.rim_root.der)
        self._signers[model, expired] = made
        return made

    def responder(self, issuer: CloudRoot, *, may_sign: bool = True) -> tuple[P384Key, bytes]:
        """Return key and certificate (DER) of the OCSP responder of an issuer.

        Args:
            issuer: Issues the certificate.
            may_sign: Whether it has the extended key usage of responders.
        """
        label = f"ocsp/{key_id(issuer.authority.spki).hex()}"
        if found := self._signers.get((issuer, may_sign)):
            return found[0], found[1][0]
        key = p384_key(self._derive, label)
        certificate = issue_cloud_leaf(
            (_name("Simulated OCSP Responder"), key.spki),
            issuer.authority,
            serial=serial_number(self._derive, f"{label}/{may_sign}"),
            validity=VALIDITY,
            usages=(gpu_extensions.OCSP_SIGNING,) if may_sign else (),
            extensions=(gpu_extensions.OCSP_NO_CHECK,),
        )
        self._signers[issuer, may_sign] = key, (certificate,)
        return key, certificate

    def _issue(
        self, label: str, common_name: str, issuer: CloudRoot | None = None, serial: bytes = b""
    ) -> CloudRoot:
        """Return the CA of a label, issued once; without an issuer it is a root.

        Args:
            label: Names the CA in the derivation of its key.
            common_name: Common name of its subject.
            issuer: The CA that signs its certificate; None: itself.
            serial: Its serial number, big-endian, which is also in the subject. Empty: derived from
                the label.
        """
        name = _name(common_name, serial.hex().upper())
        if found := self._issued.get(place := (label, name, issuer.der if issuer else b"")):
            return found
        subject = Issuer(name, p384_key(self._derive, label))
        made = self._issued[place] = issue_ca(
            subject,
            issuer.authority if issuer else subject,
            self._derive,
            label,
            serial=int.from_bytes(serial, "big") or serial_number(self._derive, label),
            validity=VALIDITY if "rim" in label else _DEVICE_VALIDITY,
            extensions=(_ACCESS,) if issuer and not serial else (),
        )
        return made


# Keys and certificates take most of the time of a machine, and machines of one seed share them.
@lru_cache(maxsize=16)
def make_gpu_pki(seed: bytes, prefix: str = "") -> GpuPki:
    """Return the PKI of a seed, 32 bytes; `prefix` precedes all labels: each gives another PKI."""
    return GpuPki(lambda label, size: hkdf_sha256(seed, f"{prefix}{label}".encode(), size, SALT))


def _issue_leaf(
    brom: CloudRoot, spki: bytes, model: DeviceModel, extensions: tuple[Extension, ...]
) -> bytes:
    # The serial number is the key id with its first bit cleared and the second one set.
    serial = bytearray(key_id(spki))
    serial[0] = serial[0] & 0x3F | 0x40
    subject = _name(f"{model.chip} A01 {model.processor} FMC LF", serial.hex().upper())
    return issue_cloud_leaf(
        (subject, spki),
        brom.authority,
        serial=int.from_bytes(serial, "big"),
        validity=_DEVICE_VALIDITY,
        extensions=extensions,
        constrained=False,
    )


def _dice(model: DeviceModel, device_key: bytes, fwid: bytes) -> Extension:
    if model.architecture == "BLACKWELL":
        return gpu_extensions.encode_dice_tcb_info(
            _VENDOR, f"{model.chip} A01 {model.processor}", fwid
        )
    return gpu_extensions.encode_dice_fwid(device_key, fwid)


def _name(common_name: str, serial: str = "") -> bytes:
    owner = {"C": "US", "O": SIMULATED_MARK, "CN": common_name}
    return encode_name(**({"serialNumber": serial} if serial else {}), **owner)


OCSP_VALIDITY: Final = timedelta(hours=24)
"""How long an answer is valid, as those of NVIDIA's responders."""

_HOUR: Final = timedelta(hours=1)


class ServedCertificate(NamedTuple):
    """A certificate (DER) with a status at the OCSP responder: good, if `fault` is None."""

    der: bytes
    issuer: CloudRoot
    fault: OcspFault | None = None
    leaf: tuple[P384Key, bytes] | None = None  # key and certificate that sign in a fault


class SimulatedOcsp:
    """OCSP responder for the certificates of one PKI."""

    def __init__(self, pki: GpuPki, certificates: Iterable[ServedCertificate]) -> None:
        """Create the responder.

        Args:
            pki: Issues the responders' certificates.
            certificates: Certificates with a status. Requests about others, such as leaves, are
                answered by "unauthorized".
        """
        self._pki = pki
        self._served = {read_path_certificate(served.der).serial: served for served in certificates}

    def respond(self, request: bytes, now: datetime) -> bytes:
        """Return the answer (DER) to a request (DER) at the time `now`, with its nonce, if any.

        For a malformed request, or one about another certificate, it is an OCSP error.
        """
        try:
            asked = read_ocsp_request(request)
        except FormatError:
            return write_ocsp_error("malformed request")
        served = self._served.get(asked.cert_id.serial)
        if served is None or asked.cert_id != _identify(served, asked.cert_id):
            return write_ocsp_error("unauthorized")
        return self._answer(served, asked.cert_id, now, asked.nonce)

    def answers(self, now: datetime) -> tuple[bytes, ...]:
        """Return the answers (DER) about all certificates at the time `now`, without nonces."""
        return tuple(
            [self._answer(served, _identify(served), now, None) for served in self._served.values()]
        )

    def _answer(
        self, served: ServedCertificate, asked: CertId, now: datetime, nonce: bytes | None
    ) -> bytes:
        fault = served.fault or OcspFault("brom")
        start = now.replace(minute=0, second=0, microsecond=0) + fault.shift
        if fault.about_other:
            issuer = next(one for one in self._served.values() if one.der == served.issuer.der)
            served, asked = issuer, _identify(issuer, asked)
        answer = write_ocsp_answer(
            self._responder(served, fault),
            asked,
            start,
            start + OCSP_VALIDITY,
            status=fault.status,
            reason=fault.reason,
            revoked_at=start - _HOUR if fault.status == "revoked" else None,
            nonce=_nonce(fault, nonce),
        )
        return _alter(answer) if fault.altered else answer

    def _responder(self, served: ServedCertificate, fault: OcspFault) -> OcspResponder:
        if fault.by_leaf and served.leaf is not None:
            key, certificate = served.leaf
        else:
            key, certificate = self._pki.responder(served.issuer, may_sign=fault.may_sign)
        return OcspResponder(
            certificate, lambda data: encode_sequence(*map(encode_integer, key.sign(data)))
        )


def _identify(served: ServedCertificate, like: CertId | None = None) -> CertId:
    """Return the OCSP identifier (CertID) of a certificate.

    Its hash algorithm is that of the identifier `like`; None: SHA-384.
    """
    subject: PathCertificate = read_path_certificate(served.der)
    issuer = read_path_certificate(served.issuer.der)
    return cert_id(subject, issuer, like.hash_name if like else "sha384")


def _nonce(fault: OcspFault, nonce: bytes | None) -> bytes | None:
    if nonce is None or fault.nonce == "missing":
        return None
    return nonce if fault.nonce == "echoed" else bytes([nonce[0] ^ 1]) + nonce[1:]


def _alter(answer: bytes) -> bytes:
    """Flip a bit of the signed time in the answer, so that its signature becomes invalid."""
    at = answer.index(b"Z") - 1
    return answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
