"""The Hugging Face Hub: fetching, pushing, and what goes wrong between here and there."""
