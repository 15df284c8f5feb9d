"""Simulated PKIs of Intel and AMD, from one seed: certificates, CRLs, collateral, quoting enclave.

Their roots are trusted only if the caller passes them as trust anchors.
"""
