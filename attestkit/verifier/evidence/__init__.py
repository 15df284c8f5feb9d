"""Evidence in the verifier: accepted forms, bundles with collateral, checks and claims.

The steps of a verification are in `examination`, beside this package.
"""
