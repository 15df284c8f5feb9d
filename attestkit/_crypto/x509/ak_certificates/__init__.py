"""Certificates of the attestation keys of TPMs: paths, revocation, and what they name."""
