"""wandb: a run a job, its upload when nodes have no network, its dashboard as code, a sweep over a matrix.

Imports `workflow`, `artifacts` and `base`.
"""
