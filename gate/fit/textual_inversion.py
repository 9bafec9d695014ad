"""Fit a textual inversion: the vectors of one new word, everything else frozen."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gate.adapters.formats import WORD_TEMPLATE, WORDS_FILE
from gate.adapters.words import add_words
from gate.errors import UsageError
from gate.fit.trainer import Trainer, is_small

if TYPE_CHECKING:
    from gate.backbone import Backbone
    from gate.fit.config import FitConfig
    from gate.sample import SampleSet


class TextualInversionTrainer(Trainer):
    """Gal et al. 2022, section 4.1: rate 5e-3 and 5000 steps on Stable Diffusion; 1e-2 and 600 on small denoisers. The
    word stands before each of the three captions, as the technique puts it; it starts as the vocabulary's mean."""

    def __init__(self, backbone: Backbone, config: FitConfig, samples: SampleSet) -> None:
        self.backbone = backbone
        self.tokenizer = copy.deepcopy(backbone.tokenizer)
        encoder: Any = copy.deepcopy(backbone.components["text_encoder"])
        self.encoder = encoder
        most = self.tokenizer.model_max_length - 2  # a start and an end take a place each
        if config.vectors > most:
            raise UsageError(
                f"A prompt of {backbone.name} holds {most} vectors; give {most} or fewer --vectors."
            )
        table: Tensor = encoder.get_input_embeddings().weight.detach()
        self.token = config.token or f"<{Path(config.output).name}>"
        if self.token in self.tokenizer.get_vocab():
            raise UsageError(f"{self.token!r} is a word of {backbone.name} already; choose another --token.")
        g = torch.Generator().manual_seed(config.seed)
        first = table.mean(0) + 0.1 * table.std() * torch.randn(
            config.vectors, table.shape[1], generator=g
        ).to(table)
        [self.spelled] = add_words(self.tokenizer, self.encoder, {self.token: first}).values()
        self.vectors = nn.Parameter(first.clone())
        self.known = len(backbone.tokenizer)
        encoder.get_input_embeddings().register_forward_hook(self._insert)
        small = is_small(backbone.denoiser)
        self.rate = config.rate or (1e-2 if small else 5e-3)
        self.steps = 600 if small else 5000
        self.groups = [{"params": [self.vectors], "lr": self.rate, "weight_decay": 0.0}]

    def _insert(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The learned vectors in place of the table's rows."""
        new = args[0] - self.known
        mine = self.vectors[new.clamp(0, len(self.vectors) - 1)].to(output.dtype)
        return torch.where((new >= 0)[..., None], mine, output)

    def predict(self, x_t: Tensor, t: Tensor, texts: list[str], rows: list[int]) -> Tensor:
        prompts = [WORD_TEMPLATE.format(prompt=text, token=self.spelled).strip() for text in texts]
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )  # fmt: skip
        embeds = self.encoder(tokens.input_ids.to(x_t.device))[0]
        prediction: Tensor = self.backbone.denoiser(x_t, self.time(t), embeds, return_dict=False)[0]
        return prediction

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file({self.token: self.vectors.detach().cpu().contiguous()}, folder / WORDS_FILE)

    def facts(self) -> dict[str, Any]:
        return {"rate": self.rate, "vectors": len(self.vectors), "parameters": self.vectors.numel()}

    def release(self) -> None:
        del self.encoder
