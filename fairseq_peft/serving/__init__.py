"""A trained model in use: raw text to classes, in memory and over HTTP, many adapters on one base,
frozen features."""
