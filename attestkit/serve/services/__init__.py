"""Methods of the guest agent API's generations, and the context that they work on.

A method is one short function from a message to a response.
"""
