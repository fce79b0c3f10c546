"""Frozen pretrained language models behind one interface, and functions that load or build them."""
