"""RPC layer: from requests to messages to methods, and back, in JSON and protobuf.

It does not know the methods.
"""
