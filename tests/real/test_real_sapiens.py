"""sapiens: two RoBERTas of antibody sequences, as fairseq 0.9 wrote them.

Their args name a criterion, an optimizer and a user module that nobody else has; their architecture
is called roberta_small, with sizes of its own; their weights were a GPU's; their text is residues
with spaces between.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fairseq")
pytestmark = pytest.mark.real

from fairseq.data import Dictionary  # noqa: E402
from fairseq.models.roberta import RobertaModel  # noqa: E402
from helpers import TINY, TOLERANCE, train_flags  # noqa: E402
from runs import metrics  # noqa: E402
from verbs import run  # noqa: E402

from fairseq_peft.adapters.base import renamed  # noqa: E402
from fairseq_peft.checkpoints import file as checkpoint_file  # noqa: E402
from fairseq_peft.models.roberta import RobertaPeftModel  # noqa: E402
from fairseq_peft.models.roberta import architecture as roberta_of  # noqa: E402

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
CLASSES = ("native", "scrambled")
NUM_ROWS = {"train": 64, "valid": 20, "test": 20}


@pytest.fixture(scope="module")
def models(package):
    """The folder of both checkpoints and their dict.txt."""
    return package("sapiens") / "models" / "v1"


@pytest.fixture(scope="module")
def words(models):
    words = Dictionary.load(str(models / "dict.txt"))
    words.add_symbol("<mask>")
    return words


@pytest.fixture(scope="module")
def antibody(models):
    """The variable region of a heavy chain that the package's own page shows."""
    (page,) = models.parents[2].glob("sapiens-*.dist-info/METADATA")
    return max(re.findall(f"\\b[{RESIDUES}]{{80,}}\\b", page.read_text()), key=len)


@pytest.fixture(scope="module")
def raw(antibody, tmp_path_factory):
    """Antibodies with six residues changed; in half of them 25 neighbours have lost their order."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("raw")
    for split, number in NUM_ROWS.items():
        rows = []
        for row in range(number):
            residues = list(antibody)
            for place in rng.sample(range(len(residues)), 6):
                residues[place] = rng.choice(RESIDUES)
            if row % 2:
                first = rng.randrange(20, 60)
                part = residues[first : first + 25]
                residues[first : first + 25] = rng.sample(part, len(part))
            rows.append(" ".join(residues))
        (folder / f"{split}.review").write_text("\n".join(rows) + "\n")
        labels = [CLASSES[row % 2] for row in range(number)]
        (folder / f"{split}.label").write_text("\n".join(labels) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(raw, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "antibodies"
    run("prepare-data", raw, folder, "--bpe", "none", "--bpe-dir", models)
    return folder


@pytest.fixture(scope="module")
def train(data, models, fairseq, tmp_path_factory):
    """``train("vh", "lora")``: the save directory of six epochs; once for each."""
    done = {}

    def make(chain, peft):
        if (chain, peft) not in done:
            folder = tmp_path_factory.mktemp(f"{chain}-{peft}")
            own = {**dict.fromkeys(TINY), "from_scratch": None, "max_epoch": 6, "lr": 3e-3}
            base = models / f"checkpoint_{chain}.pt"
            flags = train_flags(data, folder, f"roberta_{peft}", finetune_from_model=base, **own)
            found = fairseq("train", *flags)
            assert found.returncode == 0, found.stderr[-3000:]
            done[chain, peft] = folder
        return done[chain, peft]

    return make


@pytest.mark.parametrize(("chain", "positions"), [("vh", 144), ("vl", 128)])
def test_its_numbers_are_stock_fairseqs(chain, positions, models, words, antibody):
    """The sizes that the plugin reads build what fairseq builds of the args; and it is a model of
    antibodies: a residue that is hidden from it is found again, far more often than by chance."""
    path = models / f"checkpoint_{chain}.pt"
    state = checkpoint_file.read(str(path))
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    stock = RobertaModel.build_model(state["args"], task).eval()
    stock.load_state_dict(dict(state["model"]))

    given = SimpleNamespace(_name="roberta_full", restore_file=str(path))
    roberta_of(None, "full")(given)
    assert (given.encoder_embed_dim, given.encoder_attention_heads) == (128, 8)
    assert given.max_positions == positions
    model = RobertaPeftModel.build_model(given, task).eval()
    model.load_state_dict(renamed(state["model"]))

    ids = torch.tensor([[0, *(words.index(residue) for residue in antibody), 2]])
    with torch.no_grad():
        assert (model(ids)[0] - stock(ids)[0]).abs().max() < TOLERANCE["fp32"]
        hidden = ids.repeat(len(antibody), 1)
        places = torch.arange(len(antibody))
        hidden[places, places + 1] = words.index("<mask>")
        found = model(hidden)[0][places, places + 1].argmax(-1)
    share = (found == ids[0, 1:-1]).float().mean()
    assert share > (0.6 if chain == "vh" else 0.1)  # the other is a model of light chains


@pytest.mark.parametrize("chain", ["vh", "vl"])
@pytest.mark.parametrize("peft", ["lora", "head_only"])
def test_it_learns(chain, peft, train):
    first, *_, last = metrics(train(chain, peft))
    assert last["train"]["loss"] < first["train"]["loss"]


def test_predict_says_what_training_counted(train, models, raw, tmp_path):
    folder = train("vh", "lora")
    best = json.loads((folder / "adapter" / "adapter.json").read_text())["metrics"]["num_updates"]
    (line,) = [line for line in metrics(folder) if line["num_updates"] == best]
    given = ("--base", models / "checkpoint_vh.pt", "--adapter", folder / "adapter")
    run("predict", raw / "test.review", *given, "--out", tmp_path / "out")
    told = [row.split("\t")[0] for row in (tmp_path / "out").read_text().splitlines()]
    right = sum(a == b for a, b in zip(told, (raw / "test.label").read_text().split()))
    assert right == line["subsets"]["test"]["num_correct"] > 14


def test_stock_fairseq_opens_the_merged_file(train, models, raw, tmp_path, capsys):
    """By the call that merge prints, in a process without the plugin."""
    adapter, base = train("vh", "lora") / "adapter", models / "checkpoint_vh.pt"
    run("inspect", base)
    run("inspect", adapter)
    capsys.readouterr()
    run("merge", adapter, tmp_path / "merged.pt", "--base", base)
    call = capsys.readouterr().out.splitlines()[-1]
    texts = (raw / "test.review").read_text().splitlines()
    program = (
        "import json, sys\n"
        "from fairseq.models.roberta.model import RobertaModel\n"
        f"hub = {call}\n"
        f"for text in {texts!r}:\n"
        "    ids = hub.task.source_dictionary.encode_line('<s> ' + text)\n"
        "    scores = hub.eval().predict('sentence_classification_head', ids.long())\n"
        "    print(hub.task.label_dictionary[int(scores.argmax()) + 4])\n"
        "assert not [name for name in sys.modules if name.startswith('fairseq_peft')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    run("predict", raw / "test.review", "--base", base, "--adapter", adapter)
    ours = [row.split("\t")[0] for row in capsys.readouterr().out.splitlines()]
    assert done.stdout.split() == ours


def test_it_goes_to_hugging_faces_library(train, models, tmp_path, library):
    """Features and class logits are compared there."""
    base = models / "checkpoint_vh.pt"
    run("to-hf", train("vh", "lora") / "adapter", tmp_path / "hf", "--base", base)
