"""How a plan becomes processes: one module per place a trainer can run."""
