"""torch.manual_seed without the text of its caller's stack, which is most of its time.

Where no GPU is in use, torch keeps each call for the moment when one is, with that text for an
error message (``torch.cuda._lazy_call``).
"""

import types

import torch

for devices in (torch.cuda, torch.mtia, torch.xpu):
    devices.traceback = types.SimpleNamespace(format_stack=list)
