"""Data modules: tasks, the rollouts of their prompts, weights, and batches of similar length."""
