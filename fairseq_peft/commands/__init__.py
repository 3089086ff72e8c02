"""The verbs of ``fairseq-peft``: one module a verb, named after it (``-`` written ``_``).

Each has a one-line docstring (the help of the verb), ``add_arguments(parser)`` and ``run(args) ->
int`` (the exit status). Heavy imports (torch, fairseq, matplotlib, sklearn) go inside ``run``.
"""
