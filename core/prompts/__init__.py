"""Prompts as people write them: weighted words, prompts of any length, learned words from files."""
