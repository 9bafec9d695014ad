"""What techniques put on or beside a backbone: control images, fitted networks, LoRAs, words, vision models."""
