"""Execution of experiments: sessions, trainers, evaluation, restoring, generation, checkpoints, loggers."""
