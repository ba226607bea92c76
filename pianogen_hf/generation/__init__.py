"""Generation: grammar constraints and the continuation of prompts."""
