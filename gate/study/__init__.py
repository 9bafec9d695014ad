"""Does the cheap screen foretell the truth? Cells of trained heads and cheap quantities, and what they say."""
