"""Sweeps on this machine, from files in W&B's own format: what is tried, how it runs, and what came of it."""
