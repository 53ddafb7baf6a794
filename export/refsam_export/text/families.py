"""What differs between text encoders: T5, RoBERTa and CLIP (refsam-model 3.2, 3.4).

Reading a folder is the job of `encoders`, the form that is exported that of `graph`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor

from refsam_trt.contract.refsam import MAX_WORDS
from refsam_trt.errors import CheckpointError

Config = dict[str, Any]
ACTIVATIONS = ("gelu", "quick_gelu")


class TextFamily(ABC):
    """One kind of text encoder.

    Attributes:
        title: its name for people.
        model_types: `model_type` in `config.json`.
        sizes: fields of the configuration that must be positive whole numbers.
        width: the field that holds the width of the features.
        special: begin token ("" if there is none), end token and pad token.
        tokenizer_files: other forms of the tokenizer than `tokenizer.json`.
        tokenizer_class: which class of transformers reads those.
    """

    title: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    sizes: ClassVar[tuple[str, ...]]
    width: ClassVar[str]
    special: ClassVar[tuple[str, str, str]]
    tokenizer_files: ClassVar[tuple[str, ...]]
    tokenizer_class: ClassVar[str]

    def complete(self, config: Mapping[str, Any]) -> Config:
        """Return the configuration of the text encoder alone, defaults of transformers included."""
        return dict(config)

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse a configuration that the export form does not cover.

        Raises:
            CheckpointError: with `where` first.
        """
        for key in self.sizes:
            value = config.get(key)
            if type(value) is not int or value < 1:
                raise CheckpointError(
                    f"{where}: {key} is {value!r}; expected a positive whole number"
                )

    @abstractmethod
    def build(self, config: Mapping[str, Any]) -> Any:
        """Return transformers' module, weights not yet set."""

    @abstractmethod
    def encoder_part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a weights file that the module has, by its names."""

    def restore(self, module: Any) -> None:
        """Set what no weights file holds in a module made of memory as it was found."""
        for name, buffer in module.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]))
            elif name.endswith("token_type_ids"):
                buffer.zero_()

    def special_ids(self, tokenizer: Tokenizer, where: str) -> list[int]:
        """Return the ids of `special`, the begin token left out where there is none."""
        tokens = [token for token in self.special if token]
        ids = [tokenizer.token_to_id(token) for token in tokens]
        if lacks := [token for token, id_ in zip(tokens, ids, strict=True) if id_ is None]:
            raise CheckpointError(
                f"{where}: lacks the tokens {', '.join(lacks)} of {self.title}'s tokenizer"
            )
        return [id_ for id_ in ids if id_ is not None]

    def check_tokenizer(self, tokenizer: Tokenizer, where: str) -> int:
        """Refuse a tokenizer of another family; return the id of the pad token.

        Raises:
            CheckpointError: with `where` first.
        """
        *begin, end, pad = self.special_ids(tokenizer, where)
        ids = tokenizer.encode("a").ids
        if len(ids) < len(begin) + 2 or [*ids[: len(begin)], ids[-1]] != [*begin, end]:
            first = f"the begin token {begin[0]}, tokens" if begin else "tokens"
            raise CheckpointError(
                f"{where}: makes {ids} of the word 'a'; expected {first} and, last, the end token "
                f"{end}, as {self.title}'s tokenizer does"
            )
        return pad


class _T5(TextFamily):
    title = "T5"
    model_types = ("t5",)
    sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    width = "d_model"
    special = ("", "</s>", "<pad>")
    tokenizer_files = ("spiece.model",)
    tokenizer_class = "T5TokenizerFast"

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse what is not the original T5, whose feed-forward is not gated (3.2)."""
        form = config.get("feed_forward_proj", "relu")
        if form != "relu":
            raise CheckpointError(
                f"{where}: feed_forward_proj {form!r}; expected 'relu': RefSAM uses the original "
                "T5 (t5-small to t5-11b), not T5 v1.1 or Flan-T5"
            )
        super().check(config, where)

    def special_ids(self, tokenizer: Tokenizer, where: str) -> list[int]:
        """Return end and pad token, which have the same ids in every T5."""
        return [1, 0]

    def build(self, config: Mapping[str, Any]) -> Any:
        from transformers import T5Config, T5EncoderModel

        return T5EncoderModel(T5Config(**{**config, "dropout_rate": 0.0}))

    def encoder_part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop the decoder half; of the tied embedding's two names keep one."""
        kept = {k: v for k, v in tensors.items() if not k.startswith(("decoder.", "lm_head."))}
        tied = kept.pop("encoder.embed_tokens.weight", None)
        if tied is not None:
            kept.setdefault("shared.weight", tied)
        return kept

    def restore(self, module: Any) -> None:
        """Tie the two embeddings again: new memory unties them."""
        module.set_input_embeddings(module.shared)


class _Absolute(TextFamily):
    """What RoBERTa and CLIP share: learned positions, attention with biases, an activation."""

    sizes = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    width = "hidden_size"
    tokenizer_files = ("vocab.json", "merges.txt")
    settings: ClassVar[tuple[str, ...]] = (
        "hidden_act",
        "layer_norm_eps",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
    prefix: ClassVar[str]
    others: ClassVar[re.Pattern[str]]

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """Refuse other activations, and fewer positions than an expression may have tokens."""
        super().check(config, where)
        if config["hidden_act"] not in ACTIVATIONS:
            raise CheckpointError(
                f"{where}: hidden_act {config['hidden_act']!r}; expected one of "
                f"{', '.join(ACTIVATIONS)}"
            )
        eps = config["layer_norm_eps"]
        if not isinstance(eps, float) or not 0 < eps < 1:
            raise CheckpointError(f"{where}: layer_norm_eps is {eps!r}; expected a small number")
        width, num_heads = config["hidden_size"], config["num_attention_heads"]
        if width % num_heads:
            raise CheckpointError(
                f"{where}: hidden_size {width} must be a multiple of num_attention_heads "
                f"{num_heads}"
            )
        num_positions = config["max_position_embeddings"] - self.first_position(config)
        if num_positions < MAX_WORDS:
            raise CheckpointError(
                f"{where}: max_position_embeddings {config['max_position_embeddings']} leaves "
                f"{num_positions} positions; expected at least {MAX_WORDS}, the most tokens of an "
                "expression"
            )

    def first_position(self, config: Mapping[str, Any]) -> int:
        """Return the row of the position table that belongs to the first token."""
        return 0

    def encoder_part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Drop prefix, heads and tables of indexes."""
        named = {key.removeprefix(self.prefix): value for key, value in tensors.items()}
        return {key: value for key, value in named.items() if not self.others.search(key)}

    def _filled(self, config: Mapping[str, Any], defaults: Any) -> Config:
        """Return `config` reduced to what the encoder is made of, gaps filled from `made`."""
        keys = (*self.sizes, *self.settings)
        return {"model_type": defaults.model_type} | {
            key: config[key] if key in config else getattr(defaults, key) for key in keys
        }


class _Roberta(_Absolute):
    title = "RoBERTa"
    model_types = ("roberta",)
    special = ("<s>", "</s>", "<pad>")
    tokenizer_class = "RobertaTokenizerFast"
    settings = (*_Absolute.settings, "type_vocab_size")
    prefix = "roberta."
    others = re.compile(r"^(pooler|lm_head|classifier)\.|\.(position_ids|token_type_ids)$")

    def complete(self, config: Mapping[str, Any]) -> Config:
        from transformers import RobertaConfig

        return self._filled(config, RobertaConfig())

    def check(self, config: Mapping[str, Any], where: str) -> None:
        pad_id = config["pad_token_id"]
        if type(pad_id) is not int or pad_id < 0:
            raise CheckpointError(f"{where}: pad_token_id is {pad_id!r}; expected a whole number")
        super().check(config, where)

    def first_position(self, config: Mapping[str, Any]) -> int:
        """Return the row behind the pad token's, which counts from its id on."""
        return int(config["pad_token_id"]) + 1

    def build(self, config: Mapping[str, Any]) -> Any:
        from transformers import RobertaConfig, RobertaModel

        return RobertaModel(RobertaConfig(**config), add_pooling_layer=False)


class _Clip(_Absolute):
    title = "CLIP"
    model_types = ("clip", "clip_text_model")
    special = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    tokenizer_class = "CLIPTokenizerFast"
    prefix = "text_model."
    others = re.compile(
        r"^(vision_model|visual_projection|text_projection|logit_scale)\b|\.position_ids$"
    )

    def complete(self, config: Mapping[str, Any]) -> Config:
        """Take the text half of a whole CLIP's configuration."""
        from transformers import CLIPTextConfig

        own = config.get("text_config", {}) if config["model_type"] == "clip" else config
        return self._filled(own if isinstance(own, dict) else {}, CLIPTextConfig())

    def build(self, config: Mapping[str, Any]) -> Any:
        """Return the inner module: older versions of transformers wrap it once more."""
        from transformers import CLIPTextConfig, CLIPTextModel

        module: Any = CLIPTextModel(CLIPTextConfig(**config))
        return getattr(module, "text_model", module)


_FAMILIES: tuple[TextFamily, ...] = (_T5(), _Roberta(), _Clip())
_KNOWN = ", ".join(repr(name) for family in _FAMILIES for name in family.model_types)


def text_family(config: Mapping[str, Any], where: str) -> TextFamily:
    """Return the family of a `config.json`.

    Raises:
        CheckpointError: an unknown `model_type`, with `where` first.
    """
    for family in _FAMILIES:
        if config.get("model_type") in family.model_types:
            return family
    raise CheckpointError(
        f"{where}: model_type {config.get('model_type')!r}; expected one of {_KNOWN}"
    )
