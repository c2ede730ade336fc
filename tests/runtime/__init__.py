"""DSPARK inside the real SGLang on a CPU."""
