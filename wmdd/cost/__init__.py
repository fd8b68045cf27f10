"""What an experiment costs before it runs, and what its jobs ask a scheduler for (which never imports torch)."""
