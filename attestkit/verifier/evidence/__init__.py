"""Evidence in the verifier: accepted forms, bundles with collateral, checks and claims.

The steps of a verification are in `pipeline` and `examination`, beside this package.
"""
