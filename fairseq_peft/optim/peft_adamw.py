"""AdamW for fairseq: torch's fused one, without weight decay on biases, norms and other vectors."""

from dataclasses import dataclass, field
from typing import List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import OPTIMIZER_REGISTRY, FairseqOptimizer, register_optimizer
from omegaconf import II

from fairseq_peft.errors import InputError


@dataclass
class PeftAdamWConfig(FairseqDataclass):
    adamw_betas: str = field(default="(0.9, 0.999)", metadata={"help": "betas of AdamW"})
    adamw_eps: float = field(default=1e-8, metadata={"help": "epsilon of AdamW"})
    weight_decay: float = field(
        default=0.01, metadata={"help": "decoupled weight decay of matrices; vectors have none"}
    )
    lr: List[float] = II("optimization.lr")
    amp: bool = II("common.amp")


class PeftAdamW(FairseqOptimizer):
    """``torch.optim.AdamW`` in two groups: matrices decay, vectors (biases, norms) do not.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, cfg, params):
        super().__init__(cfg)
        params = list(params)
        groups = [
            {"params": [p for p in params if p.dim() > 1], "weight_decay": cfg.weight_decay},
            {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
        ]
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)
        try:
            beta1, beta2 = (float(beta) for beta in cfg.adamw_betas.strip("()[] ").split(","))
        except ValueError as error:
            raise InputError(
                f"--adamw-betas {cfg.adamw_betas!r} is not a pair of numbers: give such as "
                "'(0.9, 0.999)'."
            ) from error
        self._optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=cfg.lr[0],
            betas=(beta1, beta2),
            eps=cfg.adamw_eps,
            fused=fused,
        )

    def clip_grad_norm(self, max_norm, aggregate_norm_fn=None):
        """fairseq's, which would look for the cause of a NaN and die of a StopIteration there."""
        norm = super().clip_grad_norm(max_norm, aggregate_norm_fn)
        # With --amp it is fairseq that scales the loss down and tries again.
        if not self.cfg.amp and not torch.isfinite(norm).all():
            raise InputError(
                f"The gradients' norm is {float(norm)}: training has diverged. Give a lower --lr, "
                "a warm-up, or --clip-norm 1.0."
            )
        return norm

    @property
    def optimizer_config(self):
        return {"lr": self.cfg.lr[0]}


if "peft_adamw" not in OPTIMIZER_REGISTRY:
    register_optimizer("peft_adamw", dataclass=PeftAdamWConfig)(PeftAdamW)
