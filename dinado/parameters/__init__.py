"""Parameterisations, the weights that are trained: an oracle network, adapters, or all weights."""
