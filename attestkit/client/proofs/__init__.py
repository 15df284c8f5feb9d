"""Verification of servers: requirements, policies, and results (proofs) with their validity."""
