"""wandb: a run a job, its upload when nodes have no network, its dashboard as code.

Imports `workflow`, `artifacts` and `base`.
"""
