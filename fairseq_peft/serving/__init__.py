"""A trained model in use: raw text to classes, many adapters on one base, frozen features."""
