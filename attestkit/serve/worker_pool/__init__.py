"""Several processes that serve one verifier: who starts, watches and stops them.

Their metrics are added up for one endpoint.
"""
