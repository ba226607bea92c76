"""The page on which a person plays with the model, or looks at a piece."""
