"""A trained model in use: raw text to classes or text, in memory and over HTTP, many adapters on
one base, frozen features."""
