"""Verification of SEV-SNP reports: certificate chain, AMD revocation lists, claims.

`chain_cache` keeps what is known of verified certificates for further reports of a chip.
"""
