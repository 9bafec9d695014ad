"""A peer's own loop, in the peer's own interpreter; nothing of `gate` is imported here.

One JSON object a line. In: what to do, then {"go": true} for each turn. Out: {"ready": NAME} or {"error": SENTENCE},
then {"seconds": s, "sums": {feature: [shape, sum, norm]}} for each turn. What a peer prints goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

DIFT, GENERIC = "DIFT", "generic-diffusion-feature"
BATCH = 2  # what generic-diffusion-feature's own script takes


def kind(checkout: Path) -> str:
    """Which peer a checkout is. Raises ValueError."""
    if (checkout / "src/models/dift_sd.py").is_file():
        return DIFT
    if (checkout / "feature/diffusion_feature.py").is_file():
        return GENERIC
    raise ValueError(f"{checkout} is a checkout of neither DIFT nor generic-diffusion-feature.")


class Dift:
    """Each image by itself, as many copies of it in a batch as there are seeds, their mean: DIFT's own interface."""

    def __init__(self, asked: dict[str, Any], images: Any) -> None:
        from src.models.dift_sd import SDFeaturizer

        if asked["set"] != "dift":
            raise ValueError("DIFT gives the output of an upsampling block alone, which is the set dift")
        self.asked, self.images = asked, images * 2 - 1
        self.model = SDFeaturizer(asked["weights"])

    def __call__(self) -> dict[str, Any]:
        asked, found = self.asked, {}
        for prompt in asked["prompts"]:
            for t in asked["timesteps"]:
                for i, image in enumerate(self.images):
                    made = self.model.forward(
                        image, prompt=prompt, t=t, up_ft_index=1, ensemble_size=asked["seeds"]
                    )
                    found[f"{prompt} {t} {i}"] = made
        return found


class Generic:
    """Batches through `extract`, everything again for each prompt, timestep and seed."""

    def __init__(self, asked: dict[str, Any], images: Any) -> None:
        import torch
        from diffusers import StableDiffusionImg2ImgPipeline
        from diffusion_feature import FeatureExtractor

        self.asked, self.images = asked, (images * 2 - 1).split(BATCH)
        dtype = getattr(torch, asked["dtype"])
        pipe = StableDiffusionImg2ImgPipeline.from_pretrained(asked["weights"], torch_dtype=dtype).to("cuda")
        self.model = FeatureExtractor(
            dict.fromkeys(asked["layers"], True), "1-5", "cuda", asked["dtype"], asked["size"],
            attention="maps" if asked["set"] == "maps" else None, external_model=pipe,
        )  # fmt: skip

    def __call__(self) -> dict[str, Any]:
        asked, found = self.asked, {}
        for prompt in asked["prompts"]:
            said = self.model.encode_prompt(prompt_str=prompt)
            for t in asked["timesteps"]:
                for seed in range(asked["seeds"]):
                    for i, some in enumerate(self.images):
                        made = self.model.extract(said, len(some), some, image_type="tensors", t=t)
                        for layer, value in made.items():
                            found[f"{prompt} {t} {seed} {i} {layer}"] = value
        return found


PEERS: dict[str, Any] = {DIFT: Dift, GENERIC: Generic}


def main() -> int:
    pipe, sys.stdout = sys.stdout, sys.stderr

    def say(**words: Any) -> None:
        pipe.write(json.dumps(words) + "\n")
        pipe.flush()

    asked = json.loads(sys.stdin.readline())
    checkout = Path(asked["peer"])
    try:
        name = kind(checkout)
        sys.path[:0] = [str(checkout), str(checkout / "feature")]
        import numpy as np
        import torch

        work = PEERS[name](asked, torch.from_numpy(np.load(asked["images"])))
    except (
        Exception
    ) as error:  # whatever a stranger's code raises at its import: told, and the others are measured
        say(error=f"{type(error).__name__}: {error}".splitlines()[0][:300])
        return 1
    say(ready=name)
    for _ in sys.stdin:
        with torch.no_grad():
            _finish(torch)
            began = time.perf_counter()
            found = {key: value.cpu() for key, value in work().items()}
            seconds = time.perf_counter() - began
        sums = {
            key: [list(value.shape), float(value.double().sum()), float(value.double().norm())]
            for key, value in found.items()
        }
        say(seconds=seconds, sums=sums)
    return 0


def _finish(torch: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
