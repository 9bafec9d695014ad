"""A denoiser impaired on purpose, for guidance away from what it then predicts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Weakness = Literal["prompt", "scores", "queries", "block", "blocks"]
MIN_GRID = 4  # on fewer positions attention has nothing to mix, and weakening it changes nothing


def weak_stacks(denoiser: Any, weakness: Weakness) -> list[str]:
    """Paths of the transformers to weaken: those of the deepest level with MIN_GRID or more positions a side
    (Stable Diffusion's mid block, as the papers have it); for "blocks", the middle one of the mid block and of every
    level above."""
    modules = dict(denoiser.named_modules())
    levels = ["mid_block", *(n for n in modules if n.startswith("up_blocks.") and n.count(".") == 1)]
    stacks = {
        level: [p for i in range(16) if (p := f"{level}.attentions.{i}.transformer_blocks") in modules]
        for level in levels
    }
    if weakness == "blocks":
        return [paths[len(paths) // 2] for paths in stacks.values() if paths]
    large = (paths for level, paths in stacks.items() if paths and _grid(denoiser, level) >= MIN_GRID)
    return next(large, [])


def _grid(denoiser: Any, level: str) -> int:
    """Positions a side of a level's map, at the size that the denoiser was trained for; 64 where it does not say."""
    config = denoiser.config
    size = config.sample_size if isinstance(config.sample_size, int) else 64
    above = 0 if level == "mid_block" else int(level.rpartition(".")[2])
    return size >> (len(config.block_out_channels) - 1 - above)


@contextlib.contextmanager
def weakened(denoiser: Any, weakness: Weakness) -> Iterator[None]:
    """The denoiser with its attention or its transformers impaired, by diffusers' hooks; restored exactly."""
    from diffusers.hooks import LayerSkipConfig, apply_layer_skip

    stacks = {path: denoiser.get_submodule(path) for path in weak_stacks(denoiser, weakness)}
    marks = ("forward", "_diffusers_hook")  # what diffusers' hooks write on a module, and do not take away
    held = [(m, {k: vars(m)[k] for k in marks if k in vars(m)}) for s in stacks.values() for m in s.modules()]
    handles = []
    try:
        for path, stack in stacks.items():
            if weakness == "queries":
                handles += [b.attn1.to_q.register_forward_hook(_mean_query) for b in stack]
                continue
            scores = weakness == "scores"
            apply_layer_skip(
                denoiser,
                LayerSkipConfig(
                    indices=list(range(len(stack))),
                    fqn=path,
                    skip_attention=not scores,
                    skip_ff=not scores,
                    skip_attention_scores=scores,
                ),
            )
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, values in held:
            registry = vars(module).get("_diffusers_hook")
            if registry is not None:
                registry.remove_hook("layer_skip_hook", recurse=False)
            for mark in marks:
                vars(module).pop(mark, None)
            vars(module).update(values)


def _mean_query(module: Any, inputs: Any, queries: Tensor) -> Tensor:
    """(b, n, d) -> the same mean query at all n positions: SEG's blur at infinite width."""
    return queries.mean(dim=1, keepdim=True).expand_as(queries).contiguous()
