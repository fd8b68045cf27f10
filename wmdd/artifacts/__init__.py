"""Files that stages exchange: written whole or not at all, read with one clear line, verified, never unpickled.

HDF5 arrays, model weights, checkpoints and the unfinished rows of a long stage. Imports `settings` and `base`.
"""
