"""Rows of the embedding that train beside a method; of tokens that every dictionary has."""

SETTINGS = [("lora", {"peft_train_tokens": "<s>,<unk>"})]
