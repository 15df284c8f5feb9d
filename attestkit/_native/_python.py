"""The native core in pure Python: the fallback without the C core, and the reference in tests.

This module collects the functions of the modules `_python_*`.
"""

from attestkit._native._pck_fields import PckCertificateFields
from attestkit._native._python_cbor import cbor_check
from attestkit._native._python_columns import Column, quote_rows
from attestkit._native._python_evidence import event_maker, evidence_decoders
from attestkit._native._python_json import agent_json_walk, cpuid, hexlify, json_depth, unhex
from attestkit._native._python_keccak import keccak
from attestkit._native._python_log import (
    ccel_walk,
    replay,
    replay_many,
    sha384,
    sha384_many,
    tpm_walk,
)
from attestkit._native._python_pck import read_pck_certificate
from attestkit._native._python_quote import (
    QuoteBase,
    body_getter,
    quote_layout,
    quote_parsers,
)

__all__ = [
    "Column",
    "PckCertificateFields",
    "QuoteBase",
    "agent_json_walk",
    "body_getter",
    "cbor_check",
    "ccel_walk",
    "cpuid",
    "event_maker",
    "evidence_decoders",
    "hexlify",
    "json_depth",
    "keccak",
    "quote_layout",
    "quote_parsers",
    "quote_rows",
    "read_pck_certificate",
    "replay",
    "replay_many",
    "sha384",
    "sha384_many",
    "tpm_walk",
    "unhex",
]
