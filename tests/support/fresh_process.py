"""Rebuild the models that a test saved, and say which compute what they computed: a program for
``test_save_and_load_are_exact_in_a_fresh_process``, given the folder of models.pt and dict.txt."""

import sys
from pathlib import Path

import torch
from fairseq.data import Dictionary
from families import FAMILIES


def main(folder):
    saved = torch.load(folder / "models.pt", weights_only=True)
    family = FAMILIES[saved["family"]](Dictionary.load(str(folder / "dict.txt")))
    for name, one in saved["models"].items():
        peft, given = one["setting"]
        model = family.build(peft, seed=99, **given)
        model.accepts_base = False
        model.load_state_dict(one["state"], strict=True)
        with torch.no_grad():
            found = family.scores(model.eval(), saved["tokens"])
        assert torch.equal(found, one["logits"]), name
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
