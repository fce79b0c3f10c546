"""What moves during training: an oracle network, adapters, or all weights."""
