"""What a run is told: `profile.py` is the whole, each other file a section of it; typed YAML; options; environment."""
