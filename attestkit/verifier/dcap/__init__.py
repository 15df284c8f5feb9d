"""DCAP verification of Intel quotes: signatures, collateral, TCB levels, and reasons of rejection.

The tests compare it with other DCAP verifiers, which are not used here.
"""
