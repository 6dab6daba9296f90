"""Configs: read without running them, composed from recipes, checked."""
