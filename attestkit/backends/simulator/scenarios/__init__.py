"""Scenarios: properties of a simulated platform and its endorsements that differ from the usual.

A scenario is fixed when the platform is created; a fault happens later.
"""
