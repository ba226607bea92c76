"""What a person sees: pages."""
