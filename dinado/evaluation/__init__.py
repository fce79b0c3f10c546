"""Evaluation of a controlled model: judged samples, compared with those of the base and of best-of-n."""
