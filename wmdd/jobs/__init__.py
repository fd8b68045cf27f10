"""The edge around a stage: provenance, checkpoint, tracker, cost; the digest of its code; processes; copies on the node.

Imports `tracking`, `workflow`, `networks` and the rooms below them.
"""
