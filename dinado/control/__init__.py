"""Modules that steer a base: oracle networks, norm heads, critics, and the controlled model that decodes with them."""
