"""What the tests of prediction share: odd rows, and runs of several methods."""

#: Rows of which data preparation and fairseq make something else than their words.
ODD = [
    "beau\u00a0vif",
    "  beau   vif  ",
    "nul \u2028 triste \x85 fade",
    "beau\tvif",
    "\U0001f600 beau \u4e2d\u6587 vif \U0001f600",
    "\u4e2d\u3000\u6587\U0001f600\u00a0\U0001f600",
    "<mask> <s> </s> <unk> nul",
    "NUL fa\u0301de \ufb01n \u2460",
    "mot1 " * 60,
    "x",
    "a\x00b \x07 beau",
    "\ufeffbeau",
]
FORMS = {
    "lora": {"arch": "roberta_small_lora"},
    "linear": {"arch": "roberta_small_lora", "classifier_head": "linear", "lora_bias": "all"},
    "adapter": {"arch": "roberta_small_adapter"},
    "prompt": {"arch": "roberta_small_prompt", "prompt_num_tokens": 5},
    "prefix": {
        "arch": "roberta_small_prefix",
        "prefix_num_tokens": 4,
        "prefix_positions": "reserved",
    },
    "mean": {"arch": "roberta_small_adapter", "pooler": "mean"},
    "max": {"arch": "roberta_small_prompt", "prompt_num_tokens": 3, "pooler": "max"},
    "full": {"arch": "roberta_small_full"},
}


def lines_of(path):
    return path.read_bytes().decode().split("\n")[:-1]


def validation_logits(checkpoint, data, split="test"):
    """(labels, logits (N, classes), classes (N,)) by fairseq's own loader, task and dataset."""
    import torch
    from fairseq import checkpoint_utils

    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(checkpoint)], arg_overrides={"data": str(data)}
    )
    model = models[0].eval()
    dataset = task.load_dataset(split)
    found = []
    for i in range(len(dataset)):
        batch = dataset.collater([dataset[i]])
        with torch.no_grad():
            tokens = batch["net_input"]["src_tokens"]
            head = task.cfg.classification_head_name
            found.append(model(tokens, classification_head_name=head)[0][0])
    return task.labels, torch.stack(found), dataset
