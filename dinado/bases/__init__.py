"""Pretrained language models behind one protocol, and where they come from."""
