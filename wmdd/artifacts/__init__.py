"""Files that stages exchange: written whole or not at all, read with one clear line, verified, never unpickled.

HDF5 arrays, model weights, checkpoints, and the finished rows of an unfinished output. Imports `settings` and `base`.
"""
