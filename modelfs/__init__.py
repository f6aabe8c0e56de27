"""Mount a model registry as folders; freeze models into immutable local versions."""

__version__ = "0.1.0"
