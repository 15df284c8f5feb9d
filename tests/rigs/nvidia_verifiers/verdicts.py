"""Faults of one GPU on which NVIDIA's nv-local-gpu-verifier 2.7.3 differs from attestkit.

docs/guides/testing/scenarios.md lists them.
"""

from typing import Final

# Faults that it does not see.
LAX: Final = {
    "fwid-absent": "takes an absent field as a match",
    "device-key-other": "does not look at the key in the DICE extension",
    "blocks-41": "does not look at the number of blocks",
    "block-type-raw": "does not look at the type of blocks",
    "header-request-code": "does not look at the request",
    "header-response-code": "does not look at the response's code",
    "opaque-twice": "takes the last of two fields",
    "opaque-version": "does not look at the version",
    "rim-doctype": "accepts a document type",
    "rim-product-gb100": "does not look at the product",
    "rim-none-active": "no measurement is a match",
    "ocsp-stale": "does not look at the dates",
    "ocsp-future": "does not look at the dates",
    "ocsp-responder-no-eku": "does not look at the extended key usage",
    "ocsp-about-another": "does not look at the certificate",
    "ocsp-by-leaf": "accepts an answer that the leaf signed",
}
# Faults that a strict verifier accepts, and this one does not.
STRICT: Final = {
    "opaque-unknown-type": "refuses unknown fields",
    "measurement-35-nvdec-off": "compares a byte with an enum",
    "chain-without-root": "wants five certificates",
}
