"""Sweeps on this machine, from files in W&B's format: the search space, the trials and their execution, the ranking."""
