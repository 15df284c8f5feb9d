"""Rules of policies about SEV-SNP: guest policy, provider of a VLEK, minimum TCB by product.

`launch_claims` reads what launched a guest out of verified claims.
"""
