"""Simulated AWS Nitro CAs, and the documents of a NitroTPM (vtpm.md, section 8.1).

Chain and document have the form of AWS's: root, region, zone and instance, a leaf that is valid for
three hours, and a COSE_Sign1 without tag whose payload is a CBOR map of indefinite length.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from attestkit._crypto.x509.simulated.certificate_encoder import Issuer, Window
from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    encode_name,
    issue_cloud_leaf,
)
from attestkit.attestation.nitro_tpm import DocumentRequest
from attestkit.backends.simulator.pki import cloud_root

_REGION: Final = "us-east-1"
_LEAF_LIFETIME: Final = timedelta(hours=3)
_INSTANCE_LIFETIME: Final = timedelta(days=1)
_PROTECTED: Final = bytes.fromhex("a1013822")  # {1: -35}: ES384
_INDEFINITE_MAP: Final = b"\xbf"
_BREAK: Final = b"\xff"


def make_nitro_root(derive: cloud_root.Derive) -> cloud_root.CloudRoot:
    """Return the root of a simulated machine without other hardware, named like AWS's."""
    return cloud_root.make_root(
        derive, "aws/root", "aws.nitro-enclaves", cloud_root.p384_key(derive, "aws/root")
    )


class NitroCa:
    """CAs of region and zone under a root, which issue the certificates of an instance."""

    def __init__(
        self, root: cloud_root.CloudRoot, derive: cloud_root.Derive, now: Callable[[], float]
    ) -> None:
        """Derive the keys and issue the certificates of region and zone.

        Args:
            root: Root certificate.
            derive: Returns secret bytes.
            now: Returns Unix time, of documents and of the certificates of instance and document.
        """
        self._derive, self._now, self._root = derive, now, root
        labels = ("zone", "region", "instance", "document")
        self._keys = {label: cloud_root.p384_key(derive, f"aws/{label}") for label in labels}
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
        """Return a signed NitroTPM document.

        Args:
            module_id: `i-` and 17 hex digits, `-tpm` and 16 hex digits.
            pcrs: PCR values of the SHA-384 bank by index, 48 bytes each.
            request: The caller's fields.
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
        """Return certificates (DER) of the instance and of the document, issued at a Unix time."""
        instance = self._authority("instance", module_id)
        validity = cloud_root.window_until(issued, _INSTANCE_LIFETIME)
        instance_der = self._issue_ca("instance", instance, self._zone, 0, validity)
        leaf_der = issue_cloud_leaf(
            (encode_name(CN=module_id, O=SIMULATED_MARK), self._keys["document"].spki),
            instance,
            serial=cloud_root.serial_number(self._derive, "aws/document"),
            validity=cloud_root.window_until(issued, _LEAF_LIFETIME),
        )
        return instance_der, leaf_der

    def _sign(self, fields: dict[str, Any]) -> bytes:
        """Return the fields as a COSE_Sign1, signed by the key of the document."""
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
        validity: Window = cloud_root.VALIDITY,
    ) -> bytes:
        fields = {"path_length": path_length, "validity": validity}
        return cloud_root.issue_ca(subject, issuer, self._derive, f"aws/{label}", **fields).der
