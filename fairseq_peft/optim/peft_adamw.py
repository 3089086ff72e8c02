"""AdamW for fairseq: torch's fused one, without weight decay on biases, norms and other vectors,
and with a learning rate of its own for tensors that ask for one.

A parameter asks by its attribute ``lr_scale``: LoRA+ (--lora-lr-ratio 16) sets it to 16 on each B,
--layer-lr-decay to less and less from the last layer to the first. fairseq's schedule gives one
learning rate; such a tensor moves by so many times that.

Under ``--precision fp16`` parameters ask for a scaled loss (``scales_loss``): gradients that would
be 0 in fp16 are not, if the loss is multiplied by a large number first. The step divides by it. An
update whose gradients overflow changes no tensor, counts for the schedule, and halves the scale;
after 2,000 without one it is doubled (Micikevicius et al. 2018, arXiv:1710.03740).
"""

import logging
from dataclasses import dataclass, field
from typing import List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import OPTIMIZER_REGISTRY, FairseqOptimizer, register_optimizer
from omegaconf import II

from fairseq_peft.errors import InputError

logger = logging.getLogger(__name__)

#: Where torch has a fused AdamW.
FUSED = ("cpu", "cuda")


@dataclass
class PeftAdamWConfig(FairseqDataclass):
    adamw_betas: str = field(default="(0.9, 0.999)", metadata={"help": "betas of AdamW"})
    adamw_eps: float = field(default=1e-8, metadata={"help": "epsilon of AdamW"})
    weight_decay: float = field(
        default=0.01, metadata={"help": "decoupled weight decay of matrices; vectors have none"}
    )
    lr: List[float] = II("optimization.lr")
    amp: bool = II("common.amp")


class LossScale:
    """The number that the loss is multiplied with, and when it changes.

    Attributes:
        scale: a power of 2.
        num_good: updates since it changed last.
    """

    GROWS_AFTER = 2000
    SMALLEST = 2.0**-14

    def __init__(self, scale: float = 2.0**16, num_good: int = 0):
        self.scale = scale
        self.num_good = num_good

    def update(self, overflow: bool) -> None:
        """After each update, or each that was left out for an overflow.

        Raises:
            InputError: gradients overflow at any scale.
        """
        if not overflow:
            self.num_good += 1
            if self.num_good == self.GROWS_AFTER:
                self.scale, self.num_good = self.scale * 2, 0
            return
        self.scale, self.num_good = self.scale / 2, 0
        if self.scale < self.SMALLEST:
            raise InputError(
                "The gradients overflow whatever the loss is multiplied with: training has "
                "diverged. Give a lower --lr, a warm-up, or --precision fp32."
            )


class PeftAdamW(FairseqOptimizer):
    """``torch.optim.AdamW`` in groups: matrices decay, vectors (biases, norms) do not; the learning
    rate of a group is ``lr_scale`` times the schedule's, which is the one that is logged.

    What fairseq multiplies the gradients with (their mean, the clipping) is kept as one number
    until the step, whose kernel reads every gradient anyway: two passes over all of them less.
    Between backward and step, ``grad`` is therefore the gradient of the batch's sum; after it, what
    the step took. Gradients that fairseq itself looks at (--amp) are multiplied at once.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101.
    """

    def __init__(self, cfg, params):
        super().__init__(cfg)
        params = list(params)
        groups = {}  # (lr_scale, whether it decays) -> parameters
        for parameter in params:
            scale = getattr(parameter, "lr_scale", 1.0)
            groups.setdefault((scale, parameter.dim() > 1), []).append(parameter)
        fused = all(p.device.type in FUSED and p.is_floating_point() for p in params)
        try:
            beta1, beta2 = (float(beta) for beta in cfg.adamw_betas.strip("()[] ").split(","))
        except ValueError as error:
            raise InputError(
                f"--adamw-betas {cfg.adamw_betas!r} is not a pair of numbers: give such as "
                "'(0.9, 0.999)'."
            ) from error
        self._optimizer = torch.optim.AdamW(
            [
                {
                    "params": groups[scale, decays],
                    "lr": cfg.lr[0] * scale,
                    "lr_scale": scale,
                    "weight_decay": cfg.weight_decay if decays else 0.0,
                }
                for scale, decays in sorted(
                    groups, key=lambda key: (key[0] != 1, key[0], not key[1])
                )
            ],
            betas=(beta1, beta2),
            eps=cfg.adamw_eps,
            fused=fused,
        )
        self._waits = bool(self._optimizer.defaults["fused"]) and not cfg.amp
        self.loss_scale = None
        if any(getattr(p, "scales_loss", False) for p in params):
            self.loss_scale, self._waits = LossScale(), True
            if not self._optimizer.defaults["fused"]:
                raise InputError(
                    "--precision fp16 needs torch's fused AdamW, for CPUs and CUDA. Give another "
                    "--precision."
                )
        self._overflow = False
        self._factor = self._first_factor()

    def _first_factor(self):
        """What gradients are multiplied with before fairseq says anything."""
        return 1.0 if self.loss_scale is None else 1 / self.loss_scale.scale

    def backward(self, loss):
        """fairseq's; the loss is scaled where parameters ask for it."""
        super().backward(loss if self.loss_scale is None else loss * self.loss_scale.scale)

    def state_dict(self):
        state = super().state_dict()
        if self.loss_scale is not None:
            state = {**state, "loss_scale": dict(vars(self.loss_scale))}
        return state

    def multiply_grads(self, c):
        """Multiply the gradients by c, at the next step."""
        if self._waits:
            self._factor = self._factor * c
        else:
            super().multiply_grads(c)

    def step(self, closure=None, scale=1.0, groups=None):
        """fairseq's step, which multiplies the gradients by what has been put off."""
        if not (isinstance(self._factor, float) and self._factor == 1.0):
            device = self.param_groups[0]["params"][0].device
            scale_down = float(1 / torch.as_tensor(self._factor, dtype=torch.float32))
            # What torch's GradScaler hands to a fused optimizer. Filled on the device: a copy from
            # here would wait for it.
            number = {"dtype": torch.float32, "device": device}
            self._optimizer.grad_scale = torch.full((), scale_down, **number)
            self._optimizer.found_inf = torch.full((), float(self._overflow), **number)
        try:
            super().step(closure, scale, groups)
        finally:
            if self.loss_scale is not None:
                self.loss_scale.update(self._overflow)
            self._factor, self._overflow = self._first_factor(), False
            self._optimizer.grad_scale = self._optimizer.found_inf = None

    def zero_grad(self):
        self._factor = self._first_factor()
        super().zero_grad()

    def get_lr(self):
        """The schedule's learning rate."""
        group = self.param_groups[0]
        return group["lr"] / group["lr_scale"]

    def set_lr(self, lr):
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def load_state_dict(self, state_dict, optimizer_overrides=None):
        """fairseq's, but the groups keep their own learning rates.

        Raises:
            InputError: the state belongs to other groups of tensors.
        """
        scales = [group["lr_scale"] for group in self.param_groups]
        loss_scale = state_dict.get("loss_scale")
        state_dict = {key: value for key, value in state_dict.items() if key != "loss_scale"}
        if self.loss_scale is not None and loss_scale:
            self.loss_scale = LossScale(**loss_scale)
            self._factor = self._first_factor()
        try:
            super().load_state_dict(state_dict, optimizer_overrides)
        except ValueError as error:
            raise InputError(
                f"The checkpoint's optimizer has other tensors or groups ({error}). Go on with the "
                "flags of the first run (--lora-lr-ratio, --layer-lr-decay), or give "
                "--reset-optimizer."
            ) from error
        saved = self.param_groups[0]  # fairseq has put one learning rate everywhere, if it gave one
        given = (optimizer_overrides or {}).get("lr")
        lr = saved["lr"] / saved.get("lr_scale", 1.0) if given is None else given
        for group, scale in zip(self.param_groups, scales):
            group["lr_scale"] = scale
        self.set_lr(lr)

    def clip_grad_norm(self, max_norm, aggregate_norm_fn=None):
        """fairseq's, which would look for the cause of a NaN and die of a StopIteration there."""
        aggregate = self._norm_of(aggregate_norm_fn)
        gradients = [p.grad for p in self.params if p.grad is not None]
        if self._waits and gradients and gradients[0].device.type != "cpu":
            norm = aggregate(norm_at_once(gradients))
        else:
            norm = super().clip_grad_norm(0 if self._waits else max_norm, aggregate)
        # A GPU is waited for here, once an update: neither fairseq nor this class steps before it
        # knows that the norm is finite. What follows is computed from the number.
        norm = norm.cpu()
        if self.loss_scale is not None and not torch.isfinite(norm).all():
            logger.info(f"the gradients overflow at a loss scale of {self.loss_scale.scale:g}")
            self._overflow = True
            for parameter in self.params:  # for who looks at gradients after the step
                if parameter.grad is not None:
                    parameter.grad.zero_()
            return torch.zeros_like(norm)
        if self._waits and max_norm > 0:
            self.multiply_grads((max_norm / (norm + 1e-6)).clamp(max=1))
        # With --amp it is fairseq that scales the loss down and tries again.
        if not self.cfg.amp and not torch.isfinite(norm).all():
            raise InputError(
                f"The gradients' norm is {float(norm)}: training has diverged. Give a lower --lr, "
                "a warm-up, or --clip-norm 1.0."
            )
        return norm

    def _norm_of(self, aggregate):
        """What makes the norm that is asked for of that of ``grad``."""
        factor = self._factor
        return lambda norm: norm * factor if aggregate is None else aggregate(norm * factor)

    @property
    def optimizer_config(self):
        return {"lr": self.cfg.lr[0]}


def norm_at_once(gradients: list) -> torch.Tensor:
    """Their norm, in a few kernels whatever their number. fairseq takes two for each tensor: a CPU
    does not feel it, but a GPU spends more time on starting them than on the sums."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(gradients, 2)]).norm()


def check_learning_rates(model, name) -> None:
    """Raise InputError if tensors of ``model`` ask for learning rates of their own, or for a scaled
    loss, that the optimizer called ``name`` would not give them."""
    if issubclass(OPTIMIZER_REGISTRY.get(name, object), PeftAdamW):
        return
    parameters = list(model.parameters())
    if any(getattr(p, "scales_loss", False) for p in parameters):
        raise InputError(
            f"--precision fp16 needs a scaled loss, which --optimizer {name} does not know. Give "
            "--optimizer peft_adamw, or another --precision."
        )
    if any(getattr(p, "lr_scale", 1.0) != 1.0 for p in parameters):
        raise InputError(
            f"--lora-lr-ratio or --layer-lr-decay would be ignored: --optimizer {name} has one "
            "learning rate for all tensors. Give --optimizer peft_adamw, or leave the flag out."
        )


if "peft_adamw" not in OPTIMIZER_REGISTRY:
    register_optimizer("peft_adamw", dataclass=PeftAdamWConfig)(PeftAdamW)
