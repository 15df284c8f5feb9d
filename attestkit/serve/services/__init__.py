"""The methods of each generation of the guest agent API, and what they work on.

A method is one short function from a message to an answer.
"""
