"""Model configurations and modeling files; they know tokens and arrays, not music, and travel inside checkpoints."""
