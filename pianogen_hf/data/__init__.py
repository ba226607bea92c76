"""From files to examples: sources, families, splits, augmentation, chunks."""
