"""Train language models to obey an oracle and stay otherwise unchanged (NADO, DiNADO and peers).

This package is plain PyTorch and transformers; it imports neither Lightning nor the command line.
"""
