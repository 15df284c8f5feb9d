"""HTTP layer: from bytes to requests, with limits, and graceful shutdown.

It knows neither RPC methods nor pages.
"""
