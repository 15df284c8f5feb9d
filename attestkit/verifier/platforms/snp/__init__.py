"""Verification of SEV-SNP reports: certificate chain, AMD revocation lists, guest policy.

The authenticator keeps what is known of verified certificates for further reports of a chip.
"""
