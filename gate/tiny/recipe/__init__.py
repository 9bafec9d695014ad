"""How tiny was made: training, its card, the sprite sheet, the companions that ship. Not needed to use gate."""
