"""Outcomes of calls: the reasons of errors, and the steps of a verification.

Both are closed lists that programs compare with; the public names are in `attestkit.errors` and
`attestkit.verifier`.
"""
