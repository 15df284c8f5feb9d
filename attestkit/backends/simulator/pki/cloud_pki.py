"""Certificates of simulated clouds, and keys of clouds and of a KMS derived from a seed.

A verifier has one trust anchor, so the certificates of Google's, AWS's and Azure's TPMs are issued
under the simulated root of Intel or AMD; without such hardware there is a root of its own. Names
and extensions are those of the clouds' certificates, because verifiers read them; authority
information access is left out. AWS's documents are a COSE_Sign1 without tag whose payload is a CBOR
map of indefinite length, under a chain of root, region, zone and instance, with a leaf that is
valid for three hours.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from attestkit._crypto.der import (
    BOOLEAN,
    UTF8_STRING,
    context,
    encode_element,
    encode_integer,
    encode_sequence,
)
from attestkit._crypto.ecdsa import K256_ORDER, P256_ORDER, K256Key, P256Key
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.p384 import P384_ORDER, P384Key
from attestkit._crypto.x509.ak_certificates.gce_extension import GceInstance
from attestkit._crypto.x509.names import certificate_subject
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer, SigningKey, Window
from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    Extension,
    encode_name,
    issue_cloud_authority,
    issue_cloud_leaf,
)
from attestkit._crypto.zeroize import wipe
from attestkit.attestation.nitro_tpm import DocumentRequest

Derive = Callable[[str, int], bytes]
"""Returns secret bytes for a label and a number of bytes."""

VALIDITY: Final = Window(
    datetime(2020, 1, 1, tzinfo=timezone.utc),
    datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
)
"""Validity of the certificates of simulated CAs."""


def p256_key(derive: Derive, label: str) -> P256Key:
    """Return the private P-256 key that `derive` gives for `label`."""
    # 48 bytes: the bias is negligible, so rejection sampling is not needed.
    wide = int.from_bytes(derive(f"p256/{label}", 48), "big")
    return P256Key.from_scalar((wide % (P256_ORDER - 1) + 1).to_bytes(32, "big"))


def p384_key(derive: Derive, label: str) -> P384Key:
    """Return the private P-384 key that `derive` gives for `label`."""
    wide = int.from_bytes(derive(f"p384/{label}", 72), "big")
    return P384Key(wide % (P384_ORDER - 1) + 1)


def serial_number(derive: Derive, label: str) -> int:
    """Return the serial number of the certificate of `label`: 20 octets, the first 40 to 7F."""
    octets = derive(f"serial/{label}", 20)
    return int.from_bytes(bytes([octets[0] & 0x3F | 0x40]) + octets[1:], "big")


def window_until(now: float, duration: timedelta) -> Window:
    """Return a validity of `duration` that begins a minute before the Unix time `now`."""
    start = datetime.fromtimestamp(int(now), timezone.utc) - timedelta(minutes=1)
    return Window(start, start + duration)


class CloudRoot(NamedTuple):
    """A CA, such as the root of a simulated cloud: subject and key, and its certificate (DER)."""

    authority: Issuer
    der: bytes

    @classmethod
    def of(cls, certificate: bytes, key: SigningKey) -> "CloudRoot":
        """Return a simulated processor's root CA as the root of a cloud.

        Args:
            certificate: The root certificate in DER.
            key: Private key of that certificate.
        """
        return cls(Issuer(certificate_subject(certificate), key), certificate)


def issue_ca(
    subject: Issuer, issuer: Issuer, derive: Derive, label: str, **fields: Any
) -> CloudRoot:
    """Return the CA `subject`, certified by `issuer`.

    The serial number is derived from `label`. `fields` are arguments of `issue_cloud_authority`,
    which replace the defaults: that serial number, `VALIDITY`, no path length.
    """
    serial = serial_number(derive, label)
    fields = {"serial": serial, "validity": VALIDITY, "path_length": None, **fields}
    return CloudRoot(subject, issue_cloud_authority(subject, issuer, **fields))


def make_root(derive: Derive, label: str, common_name: str, key: SigningKey) -> CloudRoot:
    """Return a self-signed root of `key`, whose name is `common_name`, marked as simulated.

    `label` names the root in the derivation of its serial number.
    """
    subject = Issuer(encode_name(CN=common_name, O=SIMULATED_MARK), key)
    return issue_ca(subject, subject, derive, label)


def make_own_root(derive: Derive) -> CloudRoot:
    """Return the root of TPM certificates for a machine whose processor is not simulated."""
    return make_root(derive, "own/root", "TPM root", p256_key(derive, "own/root"))


_AK_CERTIFICATE: Final = bytes.fromhex("6781050803")  # 2.23.133.8.3


def issue_azure_certificate(root: CloudRoot, spki: bytes, name: str, derive: Derive) -> bytes:
    """Return the certificate (DER) of an attestation key, issued by the root itself.

    A VM has this certificate alone: that of an intermediate CA would have to be fetched.

    Args:
        root: Root certificate.
        spki: The key, SubjectPublicKeyInfo in DER.
        name: Common name of the subject.
        derive: Returns bytes for a label and a size, here for the serial number.
    """
    return issue_cloud_leaf(
        (encode_name(CN=name, O=SIMULATED_MARK), spki),
        root.authority,
        serial=serial_number(derive, f"azure/ak/{spki.hex()}"),
        validity=VALIDITY,
        usages=(_AK_CERTIFICATE,),
    )


EK_CERTIFICATE: Final = bytes.fromhex("6781050801")  # 2.23.133.8.1
_INSTANCE: Final = bytes.fromhex("2b06010401d679020115")  # 1.3.6.1.4.1.11129.2.1.21


INSTANCE: Final = GceInstance(
    zone="us-central1-a",
    project_number=100_000_000_001,
    project_id=SIMULATED_MARK,
    instance_id=1_000_000_000_000_000_001,
    instance_name="simulated-vm",
    security_version=0,
    is_production=True,
)
"""The instance that simulated certificates name."""


def issue_google_intermediates(root: CloudRoot, derive: Derive) -> tuple[CloudRoot, CloudRoot]:
    """Return two intermediate CAs with the same name and different keys, as Google uses them."""
    name = encode_name(CN="EK/AK CA Intermediate", OU="Google Cloud", O=SIMULATED_MARK)
    first, second = [
        issue_ca(
            Issuer(name, p256_key(derive, label)),
            root.authority,
            *(derive, label),
            path_length=0,
            usages=(EK_CERTIFICATE,),
        )
        for label in ("google/intermediate/0", "google/intermediate/1")
    ]
    return first, second


def issue_google_certificate(
    issuer: CloudRoot, spki: bytes, derive: Derive, usages: tuple[bytes, ...] = ()
) -> bytes:
    """Return the certificate (DER) of a key of a VM's TPM.

    Args:
        issuer: The CA. Evidence has no certificate of an intermediate one.
        spki: The key, SubjectPublicKeyInfo in DER.
        derive: Returns bytes for a label and a size, here for the serial number.
        usages: Extended key usages, contents of OBJECT IDENTIFIERs; none for attestation keys.
    """
    instance = INSTANCE
    subject = encode_name(
        CN=str(instance.instance_id),
        OU=instance.project_id,
        O="Google Compute Engine",
        L=instance.zone,
    )
    return issue_cloud_leaf(
        (subject, spki),
        issuer.authority,
        serial=serial_number(derive, f"google/ak/{spki.hex()}"),
        validity=VALIDITY,
        usages=usages,
        extensions=(Extension(_INSTANCE, _encode_instance(instance)),),
    )


def _encode_instance(instance: GceInstance) -> bytes:
    """Return the extension of a Google AK certificate in DER."""
    version = encode_element(context(0), encode_integer(instance.security_version or 0))
    flag = encode_element(BOOLEAN, b"\xff" if instance.is_production else b"\0")
    production = encode_element(context(1), flag)
    properties = encode_element(context(0), encode_sequence(version, production))
    return encode_sequence(
        encode_element(UTF8_STRING, instance.zone.encode()),
        encode_integer(instance.project_number),
        encode_element(UTF8_STRING, instance.project_id.encode()),
        encode_integer(instance.instance_id),
        encode_element(UTF8_STRING, instance.instance_name.encode()),
        properties,
    )


_REGION: Final = "us-east-1"
_LEAF_LIFETIME: Final = timedelta(hours=3)
_INSTANCE_LIFETIME: Final = timedelta(days=1)
_PROTECTED: Final = bytes.fromhex("a1013822")  # {1: -35}: ES384
_INDEFINITE_MAP: Final = b"\xbf"
_BREAK: Final = b"\xff"


def make_nitro_root(derive: Derive) -> CloudRoot:
    """Return a root named like that of AWS Nitro, for a machine without a simulated processor."""
    return make_root(derive, "aws/root", "aws.nitro-enclaves", p384_key(derive, "aws/root"))


class NitroCa:
    """Simulated PKI of AWS Nitro: CAs of region and zone, which certify instances' documents."""

    def __init__(self, root: CloudRoot, derive: Derive, now: Callable[[], float]) -> None:
        """Derive the keys and issue the certificates of region and zone.

        Args:
            root: Root certificate.
            derive: Returns secret bytes for a label and a size.
            now: Returns Unix time, of documents and of the certificates of instance and document.
        """
        self._derive, self._now, self._root = derive, now, root
        labels = ("zone", "region", "instance", "document")
        self._keys = {label: p384_key(derive, f"aws/{label}") for label in labels}
        self._zone = self._authority("zone", f"zonal.{_REGION}.aws.nitro-enclaves")
        region = self._authority("region", f"{_REGION}.aws.nitro-enclaves")
        self._cas: tuple[bytes, ...] = (
            root.der,
            self._issue_ca("region", region, root.authority, 2),
            self._issue_ca("zone", self._zone, region, 1),
        )

    def document(
        self,
        module_id: str,
        pcrs: Mapping[int, bytes],
        request: DocumentRequest,
        *,
        age: timedelta = timedelta(),
        certificate_age: timedelta = timedelta(),
    ) -> bytes:
        """Return a signed NitroTPM document: a COSE_Sign1 without tag.

        Args:
            module_id: `i-` and 17 hex digits, `-tpm` and 16 hex digits.
            pcrs: PCR values of the SHA-384 bank by index, 48 bytes each.
            request: The fields that the caller chooses: user data, nonce and public key.
            age: How long ago the document was made.
            certificate_age: How long before the document its certificates were issued.
        """
        made = self._now() - age.total_seconds()
        instance, leaf = self._issue_leaf(module_id, made - certificate_age.total_seconds())
        return self._sign(
            {
                "module_id": module_id,
                "digest": "SHA384",
                "timestamp": int(made * 1000),
                "nitrotpm_pcrs": dict(sorted(pcrs.items())),
                "certificate": leaf,
                "cabundle": [*self._cas, instance],
                **{name: getattr(request, name) for name in ("public_key", "user_data", "nonce")},
            }
        )

    def _issue_leaf(self, module_id: str, issued: float) -> tuple[bytes, bytes]:
        """Return certificates (DER) of the instance `module_id` and of its document.

        They are issued at the Unix time `issued`.
        """
        instance = self._authority("instance", module_id)
        validity = window_until(issued, _INSTANCE_LIFETIME)
        instance_der = self._issue_ca("instance", instance, self._zone, 0, validity)
        leaf_der = issue_cloud_leaf(
            (encode_name(CN=module_id, O=SIMULATED_MARK), self._keys["document"].spki),
            instance,
            serial=serial_number(self._derive, "aws/document"),
            validity=window_until(issued, _LEAF_LIFETIME),
        )
        return instance_der, leaf_der

    def _sign(self, fields: dict[str, Any]) -> bytes:
        """Return the fields of a document as a COSE_Sign1, signed by the key of the document."""
        import cbor2  # lazy: only needed here

        pairs = b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in fields.items())
        payload = _INDEFINITE_MAP + pairs + _BREAK
        to_sign = cbor2.dumps(["Signature1", _PROTECTED, b"", payload])
        r, s = self._keys["document"].sign(to_sign)
        signature = r.to_bytes(48, "big") + s.to_bytes(48, "big")
        return cbor2.dumps([_PROTECTED, {}, payload, signature])

    def _authority(self, label: str, common_name: str) -> Issuer:
        name = encode_name(CN=common_name, O=SIMULATED_MARK)
        return Issuer(name, self._keys[label])

    def _issue_ca(
        self,
        label: str,
        subject: Issuer,
        issuer: Issuer,
        path_length: int,
        validity: Window = VALIDITY,
    ) -> bytes:
        fields = {"path_length": path_length, "validity": validity}
        return issue_ca(subject, issuer, self._derive, f"aws/{label}", **fields).der


CA_LABEL: Final = "p256/root-ca"
K256_LABEL: Final = "k256/root"

_SALT: Final = b"attestkit/sim-kms/v1"
_ORDERS: Final = {"p256": P256_ORDER, "k256": K256_ORDER}


def derive_kms_bytes(seed: bytes, label: str, size: int) -> bytes:
    """Return `size` secret bytes of a KMS, a function of `seed` and `label`.

    `seed` may be that of a simulated TEE, too: the salts differ, so the results are unrelated.
    """
    return hkdf_sha256(seed, label.encode(), size, _SALT)


def make_scalar(stream: Callable[[str, int], bytes], label: str) -> bytes:
    """Return a scalar, 32 bytes, in 1..n-1 of the curve with which `label` begins: p256/ or k256/.

    It has negligible bias. `stream` returns secret bytes for a label and a size, here 48; they are
    overwritten with zeros afterwards.
    """
    order = _ORDERS[label.partition("/")[0]]
    material = stream(label, 48)
    number = int.from_bytes(material, "big") % (order - 1) + 1
    wipe(material)
    return number.to_bytes(32, "big")


def public_kms_keys(seed: bytes) -> tuple[bytes, bytes]:
    """Return a seed's public KMS keys: the CA's (SPKI, DER), secp256k1 (33 bytes, compressed)."""

    def scalar(label: str) -> bytes:
        return make_scalar(lambda name, size: derive_kms_bytes(seed, name, size), label)

    ca = P256Key.from_scalar(scalar(CA_LABEL))
    return ca.spki_der, K256Key(scalar(K256_LABEL)).public_key
