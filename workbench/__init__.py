"""Settings, command line, run folders, sweeps and reports; nothing here imports torch."""
