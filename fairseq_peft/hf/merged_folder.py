"""A fine-tuned model of Hugging Face's (``--arch hf_causal_lm``, ``hf_seq2seq``), merged, as a
folder that transformers opens by itself.

config.json, model.safetensors   of the model's own class
tokenizer.json and the like      copies from the folder of the tokenizer
generation_config.json           that of the base's folder, where it has one
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fairseq_peft import folders
from fairseq_peft.checkpoints import finetuned
from fairseq_peft.errors import unwritten
from fairseq_peft.models import hf_base

#: What a folder may hold beside the model and is good for the merged model, too.
COPIES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("spiece.model", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
)
GENERATION = "generation_config.json"


def write(out: Path, task, model, dtype: torch.dtype = torch.float32) -> tuple[int, float]:
    """Merge the methods into ``model`` and write the folder ``out``, which appears once
    transformers has opened it and computed the same.

    Args:
        task: the model's, which knows where its tokenizer is.
        dtype: of the weights that are written.

    Returns:
        the number of tensors, and how far a logit differs from the unmerged model's at most.

    Raises:
        InputError: a method cannot be merged, or the folder cannot be written.
        RuntimeError: transformers computes something else.
    """
    inputs = _random_batch(model)
    with torch.no_grad():
        expected = model(*inputs)[0]
    model.merge()
    state = {name[len("hf.") :]: tensor for name, tensor in model.state_dict().items()}
    plain = hf_base.plain(model.hf.config, model.auto)
    plain.load_state_dict(state, strict=True)
    try:
        with folders.replaced(out) as new:
            hf_base.save(plain.to(dtype), new)
            _copy(Path(task.cfg.hf_tokenizer or model.args.hf_model), new, COPIES)
            if model.args.hf_model:
                _copy(Path(model.args.hf_model), new, [GENERATION])
            difference = (_logits(new, model, inputs) - expected).abs().max()
            if dtype == torch.float32:
                finetuned.check_merged(difference, expected)
    except OSError as error:
        raise unwritten(out, error) from error
    return len({tensor.data_ptr() for tensor in state.values()}), float(difference)


def _copy(source, target, names):
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _random_batch(model):
    """What the model's forward takes: tokens (B, T), no padding among them; for an encoder-decoder
    (B, S), nothing, and (B, T)."""
    num_tokens = min(model.longest_text, 16)
    size, generator = (4, num_tokens), torch.Generator().manual_seed(0)
    tokens = [torch.randint(model.pad, size, generator=generator) for _ in range(2)]
    return tokens[:1] if model.arch == "hf_causal_lm" else (tokens[0], None, tokens[1])


def _logits(folder, model, inputs):
    """What transformers computes, with the model of ``folder`` in fp32 and its own attention."""
    kind, values = hf_base.read_config(str(folder), "")
    read = hf_base.build(kind, values, str(folder), model.auto, attention="eager").eval()
    given = {"input_ids": inputs[0]}
    if len(inputs) > 1:
        given["decoder_input_ids"] = inputs[2]
    with torch.no_grad():
        return read(**given).logits
