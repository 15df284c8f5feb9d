"""Verification of SEV-SNP reports: certificate chain, AMD revocation lists, guest policy.

The authenticator caches verified certificates for further reports of a chip.
"""
