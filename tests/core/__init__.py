"""Policies, prices and calibration, against plain versions and the paper."""
