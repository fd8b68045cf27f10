"""Networks: architectures, weights from outside, the engine they are computed by, training, augmentation.

`context` is what a long stage is given: where to compute, where to keep its state, whom to tell how far it is.

Imports `datasets`, `artifacts`, `settings` and `base`.
"""
