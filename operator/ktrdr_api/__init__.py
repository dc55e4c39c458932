"""API as pure data: the TrainingJob, the strategy format, and the request and result of a run.

Every other package imports this one. It imports only pydantic, PyYAML and the standard library and
does no I/O; only the generators `crd.py` and `reference.py`, run by `make generate`, write files.
"""
