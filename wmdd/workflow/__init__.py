"""What the Snakefile asks for: where files lie (`layout`), which stages there are (`stages`), what a job reads (`inputs`).

Imports `settings` and below, never torch.
"""
