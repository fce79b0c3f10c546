"""Lightning callbacks: stopping, resuming, training the norm head first."""
