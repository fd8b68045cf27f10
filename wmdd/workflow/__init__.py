"""What the Snakefile asks for: where files lie (`layout`), which stages there are (`stages`), which files a job reads (`inputs`).

Imports `settings` and below, never torch.
"""
