"""Run experiments: sessions, trainers, evaluation, restoring, generation, checkpoints, loggers."""
