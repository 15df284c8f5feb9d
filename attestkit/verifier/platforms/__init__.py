"""Evidence of other platforms than TDX: SEV-SNP and AWS Nitro, each with its chain.

Each gives the same kind of claims as DCAP verification does.
"""
