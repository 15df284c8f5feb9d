"""RIMs of simulated devices: XML documents, signed.

A document is written in its canonical form (Canonical XML 1.1), so that the signed bytes are those
of the file without its signature.
"""

from base64 import b64encode
from collections.abc import Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from attestkit._crypto.hashes import sha384
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem

_SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_SHA384: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
_TCG: Final = (
    "https://trustedcomputinggroup.org/resource/"
    "tcg-reference-integrity-manifest-rim-information-model/"
)
_DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
_C14N: Final = "http://www.w3.org/2006/12/xml-c14n11"
_MORE: Final = "http://www.w3.org/2001/04/xmldsig-more#"
_IN_SCOPE: Final = f'xmlns="{_SWID}" xmlns:ns0="{_SWID}" xmlns:ns2="{_SHA384}"'
_VENDOR: Final = "attestkit simulated"
_MANUFACTURER: Final = "5703"  # as in real RIMs
_METHODS: Final = (
    f'<ds:CanonicalizationMethod Algorithm="{_C14N}"></ds:CanonicalizationMethod>'
    f'<ds:SignatureMethod Algorithm="{_MORE}ecdsa-sha384"></ds:SignatureMethod>'
)
_REFERENCE: Final = (
    '<ds:Reference URI=""><ds:Transforms>'
    f'<ds:Transform Algorithm="{_DSIG}enveloped-signature"></ds:Transform>'
    f'<ds:Transform Algorithm="{_C14N}"></ds:Transform></ds:Transforms>'
    f'<ds:DigestMethod Algorithm="{_MORE}sha384"></ds:DigestMethod>'
    "<ds:DigestValue>%s</ds:DigestValue></ds:Reference>"
)


class RimResource(NamedTuple):
    """A golden measurement: the values that a RIM allows for one measurement."""

    active: bool
    hashes: tuple[bytes, ...]  # alternatives, 48 bytes each


class RimContent(NamedTuple):
    """Content of a RIM (reference integrity manifest): product, version and golden measurements."""

    product: str
    version: str  # of the driver or the VBIOS
    resources: tuple[RimResource, ...]  # by index
    edition: str = "GPU"

    def with_resource(self, index: int, resource: RimResource) -> "RimContent":
        """Return the content with `resource` as the golden measurement of an existing `index`."""
        resources = list(self.resources)
        resources[index] = resource
        return self._replace(resources=tuple(resources))


def sign_rim(content: RimContent, key: P384Key, certificates: Sequence[bytes]) -> bytes:
    """Return a signed RIM: an XML document.

    Args:
        content: Product, version and golden measurements.
        key: Private key of the signer.
        certificates: Chain of the signer in DER, from its certificate to the root.
    """
    head, tail = _document(content)
    digest = b64encode(sha384((head + tail).encode())).decode()
    signature = _signature(digest, key, certificates)
    return (head + signature + tail).encode()


_QUOTE: Final = {'"': "&quot;"}


def _document(content: RimContent) -> tuple[str, str]:
    """Return the two parts of the document between which its signature is inserted."""
    tag = sha384(f"{content.product}/{content.version}".encode()).hex()
    product, version = (escape(text, _QUOTE) for text in (content.product, content.version))
    resources = "".join(map(_resource, range(len(content.resources)), content.resources))
    head = (
        f'<SoftwareIdentity {_IN_SCOPE} corpus="false" name="{product}" patch="false" '
        f'supplemental="false" tagId="{tag}" tagVersion="0" version="1.0">\n'
        f'    <ns0:Entity name="{_VENDOR}" role="softwareCreator tagCreator"></ns0:Entity>\n'
        f'    <ns0:Meta xmlns:ns1="{_TCG}" PayloadType="direct" colloquialVersion="{version}" '
        f'edition="{content.edition}" product="{product}" revision="r1" '
        'ns1:BindingSpec="RIMIM" ns1:BindingSpecVersion="1.01" '
        f'ns1:FirmwareManufacturer="{_VENDOR}" ns1:FirmwareManufacturerId="{_MANUFACTURER}" '
        f'ns1:PlatformManufacturerId="{_MANUFACTURER}" ns1:PlatformManufacturerStr="{_VENDOR}" '
        f'ns1:PlatformModel="{product}"></ns0:Meta>\n'
        f"    <ns0:Payload>\n{resources}    </ns0:Payload>\n"
    )
    return head, "</SoftwareIdentity>"


def _resource(index: int, resource: RimResource) -> str:
    hashes = sorted(
        f'ns2:Hash{number}="{value.hex()}"' for number, value in enumerate(resource.hashes)
    )
    return (
        f'        <ns0:Resource active="{resource.active}" alternatives="{len(hashes)}" '
        f'index="{index}" name="Measurement_{index}" size="48" type="Measurement" '
        f"{' '.join(hashes)}></ns0:Resource>\n"
    )


def _signature(digest: str, key: P384Key, certificates: Sequence[bytes]) -> str:
    inner = f"{_METHODS}{_REFERENCE % digest}"
    # Canonical form of SignedInfo: with the namespaces in scope.
    scope = f'xmlns="{_SWID}" xmlns:ds="{_DSIG}" {_IN_SCOPE.partition(" ")[2]}'
    r, s = key.sign(f"<ds:SignedInfo {scope}>{inner}</ds:SignedInfo>".encode())
    value = b64encode(r.to_bytes(48, "big") + s.to_bytes(48, "big")).decode()
    chain = "".join(
        f"<ds:X509Certificate>{_base64_lines(der)}</ds:X509Certificate>" for der in certificates
    )
    return (
        f'<ds:Signature xmlns:ds="{_DSIG}"><ds:SignedInfo>{inner}</ds:SignedInfo>'
        f"<ds:SignatureValue>{value}</ds:SignatureValue>"
        f"<ds:KeyInfo><ds:X509Data>{chain}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )


def _base64_lines(der: bytes) -> str:
    """Return a certificate (DER) in base64, in lines of 64 characters, each with its line end.

    NVIDIA's reader needs that of the last line, too.
    """
    return encode_pem(CERTIFICATE_LABEL, der).split("-----")[2].lstrip("\n")
