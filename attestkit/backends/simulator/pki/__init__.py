"""The stand-ins of Intel and AMD: certificates, CRLs, collateral and quoting, all from one seed.

Nobody trusts their roots who was not handed them.
"""
