"""AdapterFusion: attention over what several frozen adapters would add, to use all of them.

    h -> h + drop(V sum_n a_n u_n)        u_n = s U_n act(D_n z + d_n) + s u'_n: what adapter n adds
    a = softmax_n((Q z + q) . (K u_n))    over the N adapters, for each token

z, and where the adapters sit, is a matter of their style (``methods/adapter.py``); all N are built
alike. Q, K (C, C) start at N(0, 0.02), q (C) at zero, V (C, C) at the identity: the start is nearly
the mean of the adapters, not the base model. What is minimised has ``regularization`` times
|V - I|^2 (Frobenius) of every slot besides the loss, as in AdapterHub. AdapterHub's K has a bias,
which adds the same to all N scores: softmax cancels it.

The adapters are read once, when a run starts, from the folders that earlier runs left
(``--fusion-adapters``). From there on they are buffers of this model: checkpoints and the adapter
folder hold them, and those folders are needed no more. They have no dropout. Without folders, which
only tests build, there are two random ones.

Trainable, for each slot: 3 C C + C. The file has the N adapters besides.

    tensor                               shape    AdapterHub (below ...output.)
    layers.{i}.ffn_adapter.query.weight  (C, C)   adapter_fusion_layer.NAMES.query.weight; bias (C)
                          .key.weight    (C, C)   adapter_fusion_layer.NAMES.key.weight
                          .value.weight  (C, C)   adapter_fusion_layer.NAMES.value.weight
                          .adapters.{n}.down.weight, ...: frozen, as in ``methods/adapter.py``

Where the rest is:
    shared/bottleneck.py  the knobs of every bottleneck, the adapters that are fused, the slots
    adapters/folder.py    the folders that ``--fusion-adapters`` names
    models/encoder.py     the slots of a layer, and where it calls them
    methods/base.py       what a method is, and which of its functions is called when

Paper: Pfeiffer et al. 2021, arXiv:2005.00247, section 3. Shape letters: B batch, T tokens, C model
dim, N adapters.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.methods.base import Method
from fairseq_peft.methods.shared import bottleneck
from fairseq_peft.methods.shared.bottleneck import STYLES, Bottleneck, BottleneckConfig, Style

#: Knobs that an adapter's own run must have had in the same way; the width is that of its tensors.
SHARED = ("style", "placement", "activation", "layer_norm", "scaling", "skip_layers")


@dataclass
class FusionConfig(BottleneckConfig):
    """Knobs of AdapterFusion: the folders, and how their adapters are built."""

    method: ClassVar[str] = "fusion"
    styles: ClassVar[dict[str, Style]] = STYLES

    style: str = field(
        default="sequential",
        metadata={"help": f"--adapter-style of the adapters: {', '.join(STYLES)} (sequential)"},
    )
    adapters: str = field(
        default="", metadata={"help": "adapter folders of --peft adapter, with commas (required)"}
    )
    regularization: float = field(
        default=0.01, metadata={"help": "factor of |V - I|^2 in what is minimised (0.01)"}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.bottleneck is None and self.reduction is None:
            self.bottleneck = 64
        if self.adapters and len(self.folders) < 2:
            raise InputError(
                f"--fusion-adapters {self.adapters!r} names {len(self.folders)}: there is nothing "
                "to choose from. Give two folders or more, with commas."
            )
        if not 0 <= self.regularization < float("inf"):
            raise InputError(
                f"--fusion-regularization {self.regularization:g} is no factor: give 0, or a "
                "positive number."
            )

    @property
    def folders(self) -> list[str]:
        """The adapter folders, in the order of the adapters."""
        return [folder.strip() for folder in self.adapters.split(",") if folder.strip()]


class Fusion(nn.Module):
    """The equation on top of this file, in a slot. Shapes: h, x (B, T, C) -> (B, T, C)."""

    def __init__(self, adapters: list[Bottleneck], embed_dim: int, dropout: float, generator):
        super().__init__()
        self.adapters = nn.ModuleList(map(as_buffers, adapters))
        self.query = linear(embed_dim, embed_dim, generator, bias_std=0.0)
        self.key = linear(embed_dim, embed_dim, generator)
        self.value = linear(embed_dim, embed_dim, generator)
        with torch.no_grad():
            nn.init.eye_(self.value.weight)
        self.dropout = dropout

    def forward(self, h, x, norm):
        """What replaces h; the arguments are those of ``Bottleneck``."""
        z = self.adapters[0].read(h, x, norm)
        updates = torch.stack([adapter.update(z) for adapter in self.adapters], dim=-2)  # B T N C
        # (Q z + q) . (K u) = K^T (Q z + q) . u, and V sum a u = sum a V u: one product each, not N.
        query = F.linear(self.query(z), self.key.weight.t())
        scores = updates @ query.unsqueeze(-1)  # B T N 1
        shares = scores.softmax(-2).to(updates.dtype)
        mixed = (shares.transpose(-1, -2) @ updates).squeeze(-2)
        return h + F.dropout(self.value(mixed), self.dropout, self.training)

    def distance(self) -> torch.Tensor:
        """|V - I|^2."""
        one = torch.eye(len(self.value.weight), device=self.value.weight.device)
        return (self.value.weight - one).square().sum()


def as_buffers(module: nn.Module) -> nn.Module:
    """``module`` with buffers for parameters: they are part of the state, and never train."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


def linear(inputs: int, outputs: int, generator, std: float = 0.02, bias_std=None):
    """A linear map from N(0, std), its bias from N(0, bias_std), if it has one."""
    # On "meta" nothing is drawn from the global generator.
    made = nn.Linear(inputs, outputs, bias_std is not None, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        made.weight.normal_(0, std, generator=generator)
        if bias_std is not None:
            made.bias.normal_(0, bias_std, generator=generator)
    return made


class AdapterFusion(Method):
    """One fusion in each slot that the adapters have."""

    name = "fusion"
    summary = "attention over what several frozen adapters would add"
    paper = "Pfeiffer et al. 2021, arXiv:2005.00247"
    logits_at_start = "changed"
    learning_rates = (5e-5, 1e-4, 5e-4)
    excludes = dict.fromkeys(
        ("adapter", "compacter"), "both fill the slots behind the blocks, and a slot holds one"
    )
    Config = FusionConfig

    def inject(self, model, family, generator):
        plain = replace(self.config, dropout=0.0)
        for layer, slot, block in bottleneck.slots(model, family, self.config):
            c = block.out_features
            b = self.config.width(c)
            adapters = []
            for _ in self.config.folders or range(2):
                # Random, not the identity: alike, they would leave nothing to choose from.
                down = linear(c, b, generator, c**-0.5, bias_std=1.0)
                up = linear(b, c, generator, 0.2 * b**-0.5, bias_std=0.2)
                adapters.append(Bottleneck(down, up, c, plain))
            fusion = Fusion(adapters, c, self.config.dropout, generator)
            surgery.fill(layer, slot, fusion.to(block.weight).train(layer.training))

    def check_base(self, model, base):
        if not self.config.folders:
            raise InputError(
                "--peft fusion needs the adapters that it chooses from: give two folders or more "
                "with --fusion-adapters, and the knobs they were trained with."
            )
        if base is None:
            raise InputError(
                "--peft fusion and --from-scratch: adapters belong to the base they were trained "
                "on. Give it with --finetune-from-model."
            )
        for folder in self.config.folders:
            read(model, folder, self.config, base)

    def adopt_base(self, model, family):
        for n, folder in enumerate(self.config.folders):
            tensors = read(model, folder, self.config)
            for name, fusion in fusions(model).items():
                for key, buffer in fusion.adapters[n].named_buffers():
                    buffer.copy_(tensors[f"{name}.{key}"])

    def count(self, dims):
        c = dims.embed_dim
        return bottleneck.count_slots(dims, self.config, f"3 x {c} x {c} + {c}")

    def buffer_bytes(self, dims):
        c, b = dims.embed_dim, self.config.width(dims.embed_dim)
        adapter = bottleneck.count(dims, self.config, f"2 x {c} x {b} + {b} + {c}")
        return 4 * adapter.total * len(self.config.folders or range(2))

    def penalty(self, model):
        if self.config.regularization == 0:
            return None
        distances = [fusion.distance() for fusion in fusions(model).values()]
        return self.config.regularization * torch.stack(distances).sum()


def fusions(model) -> dict[str, Fusion]:
    """Name -> the fusion there."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Fusion)}


def read(model, folder: str, config: FusionConfig, base=None) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder, which fit those of ``model``'s adapters.

    Raises:
        InputError: it holds something else, its adapter is built in another way, or ``base`` is not
            the one it was trained on.
    """
    described, tensors = model.read_adapter(folder, base)
    peft, knobs = described["method"]["peft"], described["method"]["knobs"]
    if peft != "adapter":
        raise InputError(
            f"--fusion-adapters: {folder} is of --peft {peft}. Give folders of --peft adapter."
        )
    for knob in SHARED:
        if knobs[knob] != getattr(config, knob):
            flag = knob.replace("_", "-")
            raise InputError(
                f"--fusion-adapters: {folder} was trained with --adapter-{flag} {knobs[knob]}, and "
                f"--fusion-{flag} is {getattr(config, knob)}. Give the value that all of them were "
                "trained with."
            )
    for name, fusion in fusions(model).items():
        for key, buffer in fusion.adapters[0].named_buffers():
            found = tensors[f"{name}.{key}"].shape
            if found != buffer.shape:
                raise InputError(
                    f"--fusion-adapters: {name}.{key} of {folder} is {tuple(found)}, expected "
                    f"{tuple(buffer.shape)}. Give the --fusion-bottleneck that it was trained with."
                )
    return tensors


METHOD = AdapterFusion
