"""Verification of platforms other than TDX: SEV-SNP and AWS Nitro, with their chains.

Their claims have the same form as those of DCAP verification.
"""
