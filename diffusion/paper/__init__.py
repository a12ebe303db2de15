"""The paper's numbers, and the commands that reproduce them."""
