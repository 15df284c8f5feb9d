"""Scenarios: what differs in a simulated platform and its endorsements from an up-to-date one.

A scenario is fixed when the platform is created; a fault happens later.
"""
