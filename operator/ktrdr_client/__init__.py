"""Kubernetes client: the only code of the operator that sends requests to the API server.

`cluster` is the client, `errors` its errors, `watch_stream` rewrites answers for kopf, `testing` is
an API server in memory for tests.
"""
