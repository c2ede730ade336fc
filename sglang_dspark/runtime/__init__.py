"""DSpark inside SGLang; the only package that imports sglang.

- ``versions``: which lane serves which SGLang
- ``settings``: what an operator sets
- ``refusals``: what is not served, each with its remedy
- ``drift``: how far confidences are from what is accepted
- ``exporter``: metrics in prometheus_client
- ``metrics``: sums over steps, for Prometheus and /server_info
- ``observers``: who is told of every step
- ``request_log``: what a server was asked, recorded
- ``kernels``: head, lengths and rejection, in PyTorch and Triton
- ``worker``: the lane on a release without a built-in DSPARK
- ``steer``: the lane on later releases, under their own DSPARK
- ``plugin``: what SGLang loads
- ``profile``: what a server's steps cost, measured
"""
