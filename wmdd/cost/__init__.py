"""What an experiment costs before it runs, and what its jobs ask a scheduler for. Never imports torch.

Imports `workflow`, `settings` and the rooms below them.
"""
