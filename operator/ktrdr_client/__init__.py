"""The only code that talks to anything outside: the Kubernetes API server.

Imported by the operator. `cluster` is the real client, `testing` the fake that tests use instead.
"""
