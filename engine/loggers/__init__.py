"""Where numbers go: the run's own metrics.jsonl always; W&B, TensorBoard and a CSV table when asked for."""
