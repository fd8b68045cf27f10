"""Typed settings of every stage, a file a family: type, default, bounds, unit, meaning and source; the single source of truth.

The check of experiment files, the flags of the commands and the schema for editors are made from these classes. A default
without a named source is this project's own choice. Imports `base` alone; never torch.
"""
