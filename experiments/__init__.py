"""Configuration, command line and run folders; nothing here imports torch."""
