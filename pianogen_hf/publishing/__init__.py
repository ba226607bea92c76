"""Publishing: the card that goes with a model."""
