"""The control plane: runs TrainingJobs as pods and keeps their status up to date.

Read `reconcile` first, then `observe`, `decide`, `policies` and `apply`; how events get there is in
`watch_session`, `watch_filter` and `intake`. No torch here.
"""
