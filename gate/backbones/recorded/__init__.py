"""Pipelines that no family serves, by their own call: rehearsed once with markers, then recorded prompt by prompt.

`pipeline` builds diffusers' own pipeline from parts, `rehearsal` runs its `__call__` with stand-ins where it meets the
denoiser, the scheduler and the VAE, `marker` and `geometry` read off what it did to a marker, `call` keeps a prompt's
arguments, `levels` measures noise levels, `family` is the backbone, `proof` compares it with the pipeline's own steps.
"""
