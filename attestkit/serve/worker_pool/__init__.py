"""Worker processes of one verifier service: start, supervision, restart, and shutdown.

The metrics of all workers are aggregated for one endpoint.
"""
