"""The procedural world that nano learns: scenes, their captions, pictures and detectors."""
