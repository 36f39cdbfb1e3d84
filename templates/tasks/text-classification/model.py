"""The model: an encoder of transformers with a new head. Edit me."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from free_ml_stack import StackError
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from .config import TrainConfig
from .data import encoder, tokenizer

TASK = "text-classification"
FREE = {0: "batch", 1: "tokens"}  # axes of any size
INPUTS = {"input_ids": FREE, "attention_mask": FREE}
OUTPUTS = {"probabilities": {0: "batch"}}
LIBRARY = "transformers"  # the Hub's id of what loads it
USE = """from transformers import pipeline

classify = pipeline("text-classification", "<repository>")"""

logging.set_verbosity_error()  # that the head is new, which it should be
logging.disable_progress_bar()


def build(config: TrainConfig, facts: Mapping[str, Any]) -> Any:
    """The encoder that a configuration names, with a new head for the classes of this manifest. StackError."""
    names = dict(enumerate(map(str, facts["columns"]["label"]["categories"])))
    model = from_folder(encoder(config.encoder), id2label=names, label2id={name: i for i, name in names.items()})
    model.tokenizer = tokenizer(config.encoder, config.length)
    if config.lora:
        return adapted(model, config.lora)
    freeze(model, config.frozen_layers)
    return model


def from_folder(folder: Path, **names: Any) -> Any:
    """A classifier from the files of a folder, from safetensors only; a head that does not fit is made anew."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, ignore_mismatched_sizes=True, **names
        )
    except (OSError, ValueError, KeyError) as error:
        raise StackError(f"encoder: {folder} holds no encoder to classify with: {str(error).splitlines()[0]}") from None


def freeze(model: Any, layers: int) -> None:
    """Keep the embeddings and the lowest layers as they are; nothing with -1."""
    blocks = max((part for part in model.base_model.modules() if isinstance(part, nn.ModuleList)), key=len)
    every, inside = list(model.parameters()), [id(one) for one in blocks.parameters()]
    trained = [id(one) for one in blocks[max(layers, 0) :].parameters()]
    places = [id(one) for one in every]
    end = places.index(trained[0]) if trained else places.index(inside[-1]) + 1
    for parameter in every[: end if layers >= 0 else 0]:
        parameter.requires_grad = False


def adapted(model: Any, rank: int) -> Any:
    """The model with matrices of LoRA beside its linear layers, which alone are trained, with the head. StackError."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise StackError("--lora needs peft: install this project's extra `lora`") from None
    return get_peft_model(model, LoraConfig("SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


class Trained:
    """What of a model is trained, as a part of checkpoints: what stays as it is comes from the encoder again."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the parameters that are trained."""
        self.model.load_state_dict(state, strict=False)


class Served(nn.Module):
    """A classifier as it is exported: tokens and mask in, probabilities out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens and mask (n, tokens) -> probabilities (n, classes)."""
        probabilities: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits.softmax(1)
        return probabilities


def served(model: Any) -> nn.Module:
    """The network as it is exported."""
    model.set_attn_implementation("eager")  # the others can't be traced with texts of any length
    return Served(model)


def inputs(batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the exported model takes of a batch, by name."""
    return {name: batch[name] for name in INPUTS}


def base_model(config: TrainConfig) -> str:
    """The model on the Hub that this one is made of, for its card; nothing for one of a folder."""
    if config.encoder.startswith("hf://"):
        return config.encoder.removeprefix("hf://").partition("@")[0]
    return "" if config.encoder else "sentence-transformers/all-MiniLM-L6-v2"


def save(model: Any, folder: Path) -> None:
    """Write the weights and the tokenizer into the model folder, in the form of transformers."""
    model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def load(folder: Path) -> Any:
    """The model of a model folder, ready to answer."""
    model = from_folder(folder)
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval()
