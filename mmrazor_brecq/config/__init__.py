"""Read configs without running YAML, compose recipes, check files."""
