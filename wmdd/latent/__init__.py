"""Latents: what turns images into latents and latents into images (`wmdd.latent.generator`), for distillation in between."""
