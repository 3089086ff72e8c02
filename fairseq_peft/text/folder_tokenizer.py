"""The tokenizer of a folder of Hugging Face's, ``tokenizer.json``: nothing is fetched, no code is
run."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fairseq_peft.errors import InputError

FILE = "tokenizer.json"


class FolderTokenizer:
    """Text to token ids and back.

    Attributes:
        name: of its folder.
        sha256: of its file.
    """

    def __init__(self, folder: str | Path):
        """
        Raises:
            InputError: the folder has no such file, or not a tokenizer in it.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise InputError(
                "Tokenizers of Hugging Face's need the package tokenizers, which is not installed: "
                "pip install 'fairseq-peft[hf]'."
            ) from error
        path = Path(folder) / FILE
        if not path.is_file():
            raise InputError(
                f"{folder} has no {FILE}. Give the folder of a tokenizer with --hf-tokenizer, or "
                "write the file: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)."
            )
        content = path.read_bytes()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises no narrower one
            raise InputError(f"{path} is no tokenizer of Hugging Face's ({error}).") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.name = Path(folder).resolve().name
        self.sha256 = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        """One more than the highest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids, without those that begin or end a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """Text, without special tokens."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
