"""Batch verification on this machine or on a cluster, with results in the order of the input.

The evidence of a lost worker is submitted again.
"""
