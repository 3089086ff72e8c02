"""What fairseq's transformer layers share here, of encoders and of decoders: slots for adapters."""

from __future__ import annotations

from fairseq_peft.layers.dropout import Dropout


class Slots:
    """Mixin for fairseq's transformer layers, batch first.

    ``attention_adapter`` and ``ffn_adapter`` are slots: None, or a module that is called with the
    block's output h (after dropout), the block's input x, and the layer norm that follows x + h
    (None where norms come first), and returns what replaces h; all (B, T, C).
    """

    def add_slots(self) -> None:
        """Add the slots, and put ``layers/dropout.py`` where fairseq has its own."""
        # Attributes of the object: one of the class would hide the module that is put there.
        self.attention_adapter = self.ffn_adapter = None
        self.dropout_module = Dropout(self.dropout_module.p)
        self.activation_dropout_module = Dropout(self.activation_dropout_module.p)

    def before(self, x, norm):
        """What a block reads of its input x (B, T, C)."""
        return norm(x) if self.normalize_before else x

    def join(self, x, h, adapter, norm):
        """What a block hands on, (B, T, C): its input x and its output h, and the adapter's say."""
        h = self.dropout_module(h)
        if adapter is not None:
            h = adapter(h, x, None if self.normalize_before else norm)
        return x + h if self.normalize_before else norm(x + h)

    def feed_forward(self, x):
        """The feed-forward block: (B, T, C) -> (B, T, C)."""
        h = self.fc1(self.before(x, self.final_layer_norm))
        h = self.fc2(self.activation_dropout_module(self.activation_fn(h)))
        return self.join(x, h, self.ffn_adapter, self.final_layer_norm)
