"""Loggers of a run: metrics.jsonl always; W&B, TensorBoard and a CSV table when asked for."""
