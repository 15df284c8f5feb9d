"""Certificates: chains and their check, those of Intel, AMD and AWS, and the ones that we issue.

Extensions are read here too; whose root is trusted is the verifier's decision.
"""
