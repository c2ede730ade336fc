"""Routers, pools, failures, autoscaling, disaggregation and shedding."""
