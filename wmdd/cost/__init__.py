"""What an experiment costs before it runs, and what each of its jobs asks a scheduler for. Never imports torch for the latter."""
