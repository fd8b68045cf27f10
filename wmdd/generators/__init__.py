"""Generators: what turns images into latents and latents into images, for distillation in between.

Our own small ones, and pipelines of the diffusers library. Imports `networks` and the rooms below it.
"""
