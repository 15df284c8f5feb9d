"""Faults of a simulated TEE: their specification, by name and count, and their injection.

docs/scenarios.md lists them.
"""
