"""Recipes: what an adaptation does, as typed, frozen values. Imports no torch."""
