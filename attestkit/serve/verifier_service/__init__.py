"""The verifier as a service: POST /verify, its health and its metrics.

It judges evidence by the policy of whoever runs it.
"""
