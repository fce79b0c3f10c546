"""Lightning callbacks for stopping, for resuming, and for training the norm head first."""
