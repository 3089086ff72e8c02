"""IA3: maps, input or output, in company."""

#: Hugging Face PEFT's default on RoBERTa.
PEFT = {"ia3_targets": "k_proj,v_proj,out_proj,fc2", "ia3_feedforward": "out_proj,fc2"}
SETTINGS = [
    ("ia3", PEFT),
    ("ia3", {"ia3_targets": "all-linear", "ia3_feedforward": "none"}),
    ("ia3", {"ia3_targets": "all-linear", "ia3_feedforward": "all-linear", "ia3_layers": "1"}),
    ("ia3,lora", {"peft_targets": "k_proj,v_proj,fc2", "ia3_targets": "k_proj,v_proj,fc2"}),
    ("dora,ia3", {"peft_targets": "v_proj,fc2"}),
    ("ia3,prompt", {}),
]
