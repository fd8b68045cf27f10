"""Networks: architectures, weights from outside, the engine they are computed by, training, augmentation.

Imports `datasets`, `artifacts`, `settings` and `base`.
"""
