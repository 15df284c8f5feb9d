"""Faults of a simulated TEE: their specification, by name and count, and their injection.

docs/guides/testing/scenarios.md lists them.
"""
