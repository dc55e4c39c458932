"""Executors start and stop the trainers of attempts: one module per place where trainers run."""
