"""Proposals, sampling, and the on-disk store of rollouts."""
