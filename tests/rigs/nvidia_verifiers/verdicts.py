"""Faults of one GPU on which NVIDIA's nv-local-gpu-verifier 2.7.3 differs from attestkit.

docs/guides/testing/scenarios.md lists them. The texts begin with the section of nvidia-gpu.md.
"""

from typing import Final

# Faults that it does not see.
LAX: Final = {
    "fwid-absent": "3.4: takes an absent field as a match",
    "device-key-other": "3.4: does not look at the key in the DICE extension",
    "blocks-41": "2: does not look at the number of blocks",
    "block-type-raw": "2: does not look at the type of blocks",
    "header-request-code": "2: does not look at the request",
    "header-response-code": "2: does not look at the response's code",
    "opaque-twice": "2: takes the last of two fields",
    "opaque-version": "2: does not look at the version",
    "rim-doctype": "4.2: accepts a document type",
    "rim-product-gb100": "4.4: does not look at the product",
    "rim-none-active": "4.4: no measurement is a match",
    "ocsp-stale": "3.6: does not look at the dates",
    "ocsp-future": "3.6: does not look at the dates",
    "ocsp-responder-no-eku": "3.6: does not look at the extended key usage",
    "ocsp-about-another": "3.6: does not look at the certificate",
    "ocsp-by-leaf": "3.6: accepts an answer that the leaf signed",
}
# Faults that a strict verifier accepts, and this one does not.
STRICT: Final = {
    "opaque-unknown-type": "2: refuses unknown fields",
    "measurement-35-nvdec-off": "4.4: compares a byte with an enum",
    "chain-without-root": "3.3: wants five certificates",
}
