"""A page on which visitors try a model, here or as a Space on the Hub."""
