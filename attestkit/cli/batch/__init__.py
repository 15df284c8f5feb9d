"""Batch verification for `verify-many`: input lines, executors, and Parquet output.

Results are streamed in the order of the input.
"""
