"""The data plane: one program that trains one strategy, wherever it is started.

Start in `__main__`, then `run`, `pipeline`, `loop`, `artifact`. It imports `ktrdr_api` and nothing
else of ours.
"""
