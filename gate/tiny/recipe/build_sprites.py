"""Build the sprite sheet of the tiny scenes from two npm packages (a developer's command, not needed to use
gate).

    python -m gate.tiny.recipe.build_sprites FLUENT_EMOJI_3D_FOLDER EMOJIBASE_DATA_FOLDER

The first folder is the unpacked `@lobehub/fluent-emoji-3d` 1.1.0 (MIT, art by Microsoft), the second the
unpacked `emojibase-data` 17.0.0 (MIT). The choice of objects is by hand: visually distinct things, ten in
each of fourteen classes; no flags, symbols, people or near-duplicates. The last two of each class are held
out from all training."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

CELL = 96  # px; a 64 px scene shows objects at 18 to 60 px, so a cell is never magnified there
COLUMNS = 10  # one class per row
HELD_OUT_PER_CLASS = 2
ASSETS = Path(__file__).parents[1] / "assets"

# class -> "name" or "name=label in emojibase"; a name that starts with "~" takes no article (plural)
OBJECTS: dict[str, str] = {
    "mammal": (
        "dog=dog face, cat=cat face, lion, panda, elephant, pig=pig face, zebra, rabbit=rabbit face, "
        "fox, koala"
    ),
    "bird": "penguin, duck, swan, owl, flamingo, peacock, parrot, chick=baby chick, rooster, dodo",
    "sea animal": (
        "whale=spouting whale, fish, blowfish, shark, octopus, crab, jellyfish, turtle, lobster, dolphin"
    ),
    "bug": (
        "butterfly, ant, bee=honeybee, beetle, ladybug=lady beetle, snail, scorpion, caterpillar=bug, "
        "cricket, fly"
    ),
    "fruit": (
        "~grapes, watermelon, lemon, banana, pineapple, apple=red apple, pear, kiwi=kiwi fruit, "
        "strawberry, orange=tangerine"
    ),
    "vegetable": (
        "avocado, eggplant, potato, carrot, ~corn=ear of corn, bell pepper, ~broccoli, onion, "
        "cucumber, ~garlic"
    ),
    "dish": (
        "hamburger, pizza, taco, doughnut, croissant, ~fries=french fries, cake=birthday cake, ice "
        "cream=soft ice cream, pretzel, ~pancakes"
    ),
    "vehicle": (
        "locomotive, bus, ambulance, taxi, tractor, bicycle, rocket, sailboat, car=automobile, helicopter"
    ),
    "building": ("hut, house, castle, factory, bank, mosque, pagoda=Japanese castle, tent, church, hospital"),
    "garment": (
        "shirt=t-shirt, ~jeans, scarf, ~gloves, coat, dress, top hat, crown, ~socks, shoe=running shoe"
    ),
    "instrument": (
        "saxophone, accordion, guitar, keyboard=musical keyboard, violin, drum, ~maracas, flute, "
        "trumpet, banjo"
    ),
    "tool": ("hammer, saw=carpentry saw, wrench, screwdriver, toolbox, magnet, ladder, broom, axe, bucket"),
    "sport item": (
        "soccer ball, basketball, volleyball, tennis racket=tennis, ~bowling pins=bowling, boxing "
        "glove, paddle=ping pong, ~skis, baseball, rugby ball=american football"
    ),
    "plant": (
        "blossom=cherry blossom, rose, sunflower, fir tree=evergreen tree, palm tree, cactus, "
        "clover=four leaf clover, mushroom, tulip, maple leaf"
    ),
}

MICROSOFT_LICENCE_HEAD = "MIT License\n\nCopyright (c) Microsoft Corporation.\nCopyright (c) 2023 LobeHub\n\n"


def labels(emojibase: Path) -> dict[str, str]:
    """Label -> hex code in lower case, as the art's files are named."""
    entries: list[dict[str, Any]] = json.loads((emojibase / "en" / "data.json").read_text(encoding="utf-8"))
    return {entry["label"]: entry["hexcode"].lower() for entry in entries}


def art(fluent: Path, codepoint: str) -> Path:
    """The art of one code point; some files leave the variation selector out."""
    for stem in (codepoint, codepoint.replace("-fe0f", "")):
        path = fluent / "assets" / f"{stem}.webp"
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{fluent} has no art for {codepoint}; is it the unpacked @lobehub/fluent-emoji-3d 1.1.0?"
    )


def cut(path: Path) -> Image.Image:
    """One cell: the art trimmed to what is opaque, centred in a square, (CELL, CELL) RGBA.

    Trimming makes an object's extent the same share of its cell for all objects, so `scale` means one thing.
    """
    image = Image.open(path).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(square.resize((CELL - 4, CELL - 4), Image.Resampling.LANCZOS), (2, 2))
    return cell


def entries(codes: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of sprites.json, in sheet order."""
    rows: list[dict[str, Any]] = []
    for group, listed in OBJECTS.items():
        items = [item.strip() for item in listed.split(",")]
        for position, item in enumerate(items):
            name, _, label = item.partition("=")
            plural = name.startswith("~")
            name = name.lstrip("~")
            article = "" if plural else "an " if name[0] in "aeiou" else "a "
            rows.append(
                {
                    "name": name,
                    "phrase": article + name,
                    "group": group,
                    "codepoint": codes[label or name],
                    "held_out": position >= len(items) - HELD_OUT_PER_CLASS,
                }
            )
    return rows


def build(fluent: Path, emojibase: Path, assets: Path = ASSETS) -> None:
    """Write sprites.png, sprites.json and both licences into `assets`."""
    assets.mkdir(parents=True, exist_ok=True)
    rows = entries(labels(emojibase))
    sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(rows) // COLUMNS) * CELL))
    for number, row in enumerate(rows):
        y, x = divmod(number, COLUMNS)
        sheet.paste(cut(art(fluent, row["codepoint"])), (x * CELL, y * CELL))
    sheet.save(assets / "sprites.png", optimize=True)
    facts = {"cell": CELL, "columns": COLUMNS, "classes": list(OBJECTS), "objects": rows}
    (assets / "sprites.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(emojibase / "LICENSE", assets / "LICENSE-emojibase.txt")
    # the art's package declares MIT but carries no text: the same MIT text, under its own holders
    text = (emojibase / "LICENSE").read_text(encoding="utf-8")
    terms = text[text.index("Permission is hereby granted") :]
    (assets / "LICENSE-fluent-emoji.txt").write_text(MICROSOFT_LICENCE_HEAD + terms, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fluent", type=Path, help="unpacked @lobehub/fluent-emoji-3d")
    parser.add_argument("emojibase", type=Path, help="unpacked emojibase-data")
    arguments = parser.parse_args()
    build(arguments.fluent, arguments.emojibase)
