"""The drafter's passes, heads, files and targets."""
