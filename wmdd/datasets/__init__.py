"""Pictures of a dataset, from where they are to batches in memory: find, download, unpack, decode, load.

Imports `artifacts`, `settings` and `base`.
"""
