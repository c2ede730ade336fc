"""``dspark prices calibrate``."""
