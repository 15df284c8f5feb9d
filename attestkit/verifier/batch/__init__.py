"""Many pieces of evidence at a time, on this machine or a cluster, in the order they came.

A worker that is lost loses no evidence.
"""
