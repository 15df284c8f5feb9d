"""Quotes of Intel TDX: signatures, endorsements, TCB levels, and why one is refused.

The only importer of dcap_qvl.
"""
