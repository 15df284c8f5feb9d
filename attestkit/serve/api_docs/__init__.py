"""The documents of the API that a server serves: OpenAPI, a proto file, and a page for people.

They are made from the methods themselves.
"""
