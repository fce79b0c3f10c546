"""Decoding to q*: texts of a controlled model, weighted by what it got wrong."""
