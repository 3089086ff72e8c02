"""Hugging Face's side of a model: names of tensors, configurations, folders of PEFT."""
