"""The API as pure data: what a TrainingJob is, what a run is told, what it answers.

Everybody imports this package; it imports pydantic, PyYAML and the standard library only, and does
no I/O (`crd.py`, run by `make generate`, is the one module that writes files).
"""
