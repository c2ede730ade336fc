"""Cost models: files, curves, rooflines and SGLang's tables."""
