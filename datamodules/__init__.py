"""From prompts to batches: tasks, rollouts, weights and length buckets."""
