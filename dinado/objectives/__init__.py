"""Pure functions on tensors: vocabulary statistics, values of prefixes, losses, importance weights."""
