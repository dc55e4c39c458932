"""The control plane: turns TrainingJobs into pods and keeps their status true.

Start in `handlers` (which event), then `observe`, `decide`, `policies`, `apply`. No torch here.
"""
