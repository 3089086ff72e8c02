"""How a method gets into a model: find what it names, swap it, freeze the rest."""
