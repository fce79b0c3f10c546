"""Every setting of an experiment: what it means, how it is read, and which combinations are refused."""
