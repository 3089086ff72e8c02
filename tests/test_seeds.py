"""Private random streams: the same on every machine, and apart from each other."""

from fairseq_peft.seeds import stream_seed


def test_stable():
    """Written down: another value here means that every published seed has moved."""
    assert stream_seed(1, "head", "sentence_classification_head") == 8134766008448379093
    assert stream_seed(1, "method", "lora") == 6624656801039743341


def test_apart():
    names = [(), ("head",), ("method", "lora"), ("method", "prompt"), ("lora", "method")]
    seeds = {stream_seed(seed, *name) for seed in range(100) for name in names}
    assert len(seeds) == 100 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)
