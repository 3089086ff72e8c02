"""Answers, written by the model of a task: token ids of prompts -> fairseq's search -> texts."""

from __future__ import annotations

import torch
from fairseq.dataclass.configs import GenerationConfig

from fairseq_peft import scores
from fairseq_peft.errors import InputError
from fairseq_peft.injection import surgery
from fairseq_peft.models.hf_search import Writer


class WritesAnswers:
    """The part of a task that writes answers; the rest has ``cfg``, ``tokenizer``, ``layout``,
    ``room`` and ``causal``."""

    @property
    def search(self) -> GenerationConfig:
        """How answers are searched where nothing else is said: the likeliest token at each step,
        until ``eos`` or the room for answers ends."""
        return GenerationConfig(beam=1, min_len=0, max_len_b=self.cfg.max_answer_tokens)

    def write_answers(self, model, prompts, search=None) -> list[str]:
        """The model's best answers to ``prompts``, lists of token ids, as texts; see ``written``.

        search = GenerationConfig(beam=4, max_len_b=64)   # of fairseq.dataclass.configs
        texts = task.write_answers(model, [task.encode_prompt(text) for text in batch], search)
        """
        return [self.tokenizer.decode(ids) for ids in self.answer_ids(model, prompts, search)]

    def answer_ids(self, model, prompts, search=None) -> list[list[int]]:
        """The token ids of the best answers, without ``eos``."""
        return [found[0]["tokens"].tolist()[:-1] for found in self.written(model, prompts, search)]

    def written(self, model, prompts, search=None) -> list[list[dict]]:
        """What fairseq's generator finds for each of ``prompts``, lists of token ids of any
        lengths: hypotheses, the best first, each with ``tokens``, which end with ``eos``, and
        ``score``. The model is in eval mode then.

        Args:
            search: fairseq's flags of generation: beam or sampling, lengths, penalties.

        Raises:
            InputError: a prompt has no token, or more than the model has room for.
        """
        model = surgery.unwrap(model)
        for number, prompt in enumerate(prompts, 1):
            if not prompt or len(prompt) > self.room:
                raise InputError(
                    f"Text {number} has {len(prompt)} tokens, and there is room for 1 to "
                    f"{self.room}. Give a text that is none of these."
                )
        found = [None] * len(prompts)
        for rows in model.together(prompts):
            batch = self.written_together(model, [prompts[i] for i in rows], search or self.search)
            for i, hypotheses in zip(rows, batch):
                found[i] = hypotheses
        return found

    def written_together(self, model, prompts, search):
        """As ``written``, in one batch."""
        layout = self.layout
        device = next(model.parameters()).device
        generator = self.build_generator([model], search)
        tokens = layout.padded_prompts(prompts).to(device)
        first = layout.start
        if self.causal:
            generator.model.single_model.decoder.prompts = tokens[:, :-1]
            first = tokens[:, -1].repeat_interleave(generator.beam_size)
            generator.max_len = self.room - tokens.shape[1] + 1
        longest_answer = int(generator.max_len_a * tokens.shape[1] + generator.max_len_b)
        generator.min_len = min(generator.min_len, longest_answer, generator.max_len - 1)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        inputs = {"src_tokens": tokens, "src_lengths": lengths.to(device)}
        return generator.generate([model], {"net_input": inputs}, bos_token=first)

    def build_generator(self, models, args, *more, **kwargs):
        """fairseq's generator, of models as it asks for them."""
        return super().build_generator([Writer(model) for model in models], args, *more, **kwargs)

    def rouge(self, sample, model) -> torch.Tensor:
        """(4,) sums of ROUGE-1, -2 and -L (F1, stemmed) over the rows, and their number."""
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise InputError(
                "--eval-rouge needs the package rouge-score, which is not installed: pip install "
                "'fairseq-peft[hf]'."
            ) from error
        scorer = RougeScorer(scores.ROUGE, use_stemmer=True)
        sums = torch.zeros(len(scores.ROUGE) + 1, dtype=torch.float64)
        written = self.write_answers(model, [prompt for prompt, _ in sample["rows"]])
        for (_, answer), text in zip(sample["rows"], written):
            found = scorer.score(self.tokenizer.decode(answer), text)
            sums += torch.tensor([*(found[name].fmeasure for name in scores.ROUGE), 1.0])
        return sums
