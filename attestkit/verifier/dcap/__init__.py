"""DCAP verification of Intel quotes: signatures, collateral, TCB levels, and reasons of rejection.

The only package that imports dcap_qvl.
"""
