"""Opinions: computed from records and specs alone, without torch, and recomputable at any time."""
