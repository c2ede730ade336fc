"""Head, lengths and rejection, in PyTorch and interpreted Triton."""
