"""The model: an encoder of transformers with a new head. Edit me."""

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from free_ml_stack import StackError
from huggingface_hub import parse_hf_uri
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from .config import TrainConfig
from .data import encoder, tokenizer

TASK = "text-classification"
FREE = {0: "batch", 1: "tokens"}  # dynamic axes
INPUTS = {"input_ids": FREE, "attention_mask": FREE}
OUTPUTS = {"probabilities": {0: "batch"}}

logging.set_verbosity_error()  # hides the warning about the new head
logging.disable_progress_bar()


def build(config: TrainConfig, facts: Mapping[str, Any]) -> Any:
    """Load the encoder of a configuration, with a new head for the classes of this manifest. Raises StackError."""
    names = dict(enumerate(map(str, facts["columns"]["label"]["categories"])))
    model = from_folder(encoder(config.encoder), id2label=names, label2id={name: i for i, name in names.items()})
    if config.length > (most := longest(model)):
        raise StackError(f"length: the encoder reads at most {most:.0f} tokens, got {config.length}")
    model.tokenizer = tokenizer(config.encoder, config.length)
    if config.lora:
        return add_lora(model, config.lora)
    freeze(model, config.frozen_layers)
    return model


def from_folder(folder: Path, **names: Any) -> Any:
    """Load a classifier from the safetensors files of a folder; a head of another size is reinitialized."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, ignore_mismatched_sizes=True, **names
        )
    except (OSError, ValueError, KeyError) as error:
        raise StackError(f"encoder: no encoder for classification in {folder}: {str(error).splitlines()[0]}") from None


def longest(model: Any) -> float:
    """Return how many tokens an encoder reads at most, by its table of positions; infinity without a table."""
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    # the rows up to that of the padding are not used for tokens
    rows = [one.num_embeddings - (-1 if one.padding_idx is None else one.padding_idx) - 1 for one in tables]
    return min(rows, default=inf)


def freeze(model: Any, layers: int) -> None:
    """Freeze the embeddings and the lowest layers; nothing with -1."""
    blocks = max((part for part in model.base_model.modules() if isinstance(part, nn.ModuleList)), key=len)
    every, inside = list(model.parameters()), [id(one) for one in blocks.parameters()]
    trained = [id(one) for one in blocks[max(layers, 0) :].parameters()]
    places = [id(one) for one in every]
    end = places.index(trained[0]) if trained else places.index(inside[-1]) + 1
    for parameter in every[: end if layers >= 0 else 0]:
        parameter.requires_grad = False


def add_lora(model: Any, rank: int) -> Any:
    """Add LoRA matrices to all linear layers; only these and the head are trained. Raises StackError."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise StackError("--lora requires peft; run `uv sync --extra lora`") from None
    return get_peft_model(model, LoraConfig("SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


class Trained:
    """The trained parameters of a model, as a part of checkpoints; frozen ones are loaded from the encoder."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Return the trained parameters by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the trained parameters."""
        self.model.load_state_dict(state, strict=False)


class Served(nn.Module):
    """The exported classifier, from tokens and mask to probabilities."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute probabilities (n, classes) from tokens and mask (n, tokens)."""
        probabilities: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits.softmax(1)
        return probabilities


def served(model: Any) -> nn.Module:
    """Return the network to export."""
    model.set_attn_implementation("eager")  # other implementations cannot be traced with dynamic lengths
    return Served(model)


def inputs(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the inputs of the exported model, by name, from a batch."""
    return {name: batch[name] for name in INPUTS}


def library(config: TrainConfig) -> str:
    """Return the Hub's id of the library that loads the model."""
    return "transformers"


def use(config: TrainConfig) -> str:
    """Return the Python lines of the card that load the model with its library."""
    return """# pip install torch transformers
from transformers import pipeline

classify = pipeline("text-classification", "<repository>")"""


def base_model(config: TrainConfig) -> str:
    """Return the base model on the Hub for the card; "" for a local encoder."""
    if config.encoder.startswith("hf://"):
        return parse_hf_uri(config.encoder).id
    return "" if config.encoder else "sentence-transformers/all-MiniLM-L6-v2"


def save(model: Any, folder: Path) -> None:
    """Write the weights and the tokenizer to the model folder, in the format of transformers."""
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def load(folder: Path) -> Any:
    """Load a model from its folder, in evaluation mode."""
    model = from_folder(folder)
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval()
