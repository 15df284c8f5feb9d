"""Verification of SEV-SNP reports and AWS Nitro documents, with their certificate chains.

The result has the same type as that of DCAP verification.
"""
