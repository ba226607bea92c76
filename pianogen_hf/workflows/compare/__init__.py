"""Training and measuring recipes side by side."""
