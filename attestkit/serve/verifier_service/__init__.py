"""Verifier service: POST /verify, health, and metrics.

Evidence is appraised by the policy that the server was started with.
"""
