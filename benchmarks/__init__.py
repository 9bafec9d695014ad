"""How fast features are extracted, against what a user would write and against the peers. See README.md."""
