"""From requests to messages to methods, and from answers to responses, in JSON and protobuf.

Nothing here knows which methods there are.
"""
