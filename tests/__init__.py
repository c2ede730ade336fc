"""Examples, laws and golden results, laid out like the sources; helpers beside whom they help."""
