"""Training on the Trainer API: arguments, collator, trainer, callbacks."""
