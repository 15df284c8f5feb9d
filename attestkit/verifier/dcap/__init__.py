"""DCAP verification of Intel quotes: signatures, collateral, TCB levels, and reasons of rejection.

Other verifiers are oracles of the tests only.
"""
