"""Training: one loop in plain torch, for one or several processes, on any device. Edit me."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from free_ml_stack.evaluation import Evaluation, classification
from free_ml_stack.training import Checkpoints, Process, Run, Split
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .config import TrainConfig
from .data import prepare
from .model import Trained, build

NEAR = 4  # batches whose texts are sorted by length together, to reduce padding


def fit(config: TrainConfig, splits: Mapping[str, Split], run: Run, checkpoints: Checkpoints, process: Process) -> Any:
    """Train on the train split and return the model with the lowest validation loss.

    With the checkpoints of an interrupted run, training resumes with the same result as without the interruption.
    """
    torch.manual_seed(config.seed)
    train = splits["train"]
    size = min(config.batch_size, train.rows)
    steps = train.rows // size
    model = build(config, train.facts).to(process.device)
    checkpoints.load_pretrained(model, config.init)
    net, trained = process.parallel(model), Trained(model)
    groups, total = parameters(config, trained.state_dict()), config.epochs * steps
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total, pct_start=0.1, anneal_strategy="linear")
    kind, device = process.number_format(config.precision), process.device.type
    scaler = torch.amp.GradScaler(device, enabled=kind is torch.float16)
    at = checkpoints.resume(model=trained, optimizer=optimizer, schedule=schedule, scaler=scaler)
    run.expect(total, at.step)
    ready, lengths = partial(prepare, config, train.facts), np.array([len(text or "") for text in train["text"]])

    while at.epoch < config.epochs and not (config.patience and at.stale >= config.patience):
        rows = order(train, lengths, size, (config.seed, at.epoch))
        net.train()
        for batch in train.batches(rows, size, ready, process, (config.seed, at.epoch), at.batch):
            with torch.autocast(device, kind, enabled=kind is not torch.float32):
                loss = cross_entropy(classify(net, batch), batch["label"], label_smoothing=config.label_smoothing)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step()
            at.step, at.batch = at.step + 1, at.batch + 1
            if at.step % config.log_every == 0:
                mean = process.total(loss.detach().clone()).item() / process.size
                run.log(at.step, loss=mean, lr=float(schedule.get_last_lr()[0]))
            checkpoints.step()
        at.epoch, at.batch = at.epoch + 1, 0
        loss_now, accuracy = validate(config, net, splits["validation"], process)
        run.log(at.step, epoch=at.epoch, validation_loss=loss_now, validation_accuracy=accuracy)
        better = loss_now < at.best
        at.best, at.stale = (loss_now, 0) if better else (at.best, at.stale + 1)
        if better:
            checkpoints.mark_best("model")
    checkpoints.finish()
    trained.load_state_dict(checkpoints.best("model"))
    return model.merge_and_unload() if config.lora else model


def order(split: Split, lengths: NDArray[np.int64], size: int, seed: tuple[int, int]) -> NDArray[np.intp]:
    """Return rows in random order, with similar lengths within a batch, without an incomplete last batch."""
    rng = np.random.default_rng(seed)
    rows = split.order(rng)[: split.rows // size * size]
    parts = np.split(rows, range(NEAR * size, len(rows), NEAR * size))
    batches = [part[lengths[part].argsort(kind="stable")].reshape(-1, size) for part in parts]
    return np.concatenate([rng.permutation(part).ravel() for part in batches])


def parameters(config: TrainConfig, trained: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return parameter groups with their learning rates: the trained part of the encoder, and the head."""
    head = [name for name in trained if "classifier" in name or "score" in name]
    groups = [([name for name in trained if name not in head], config.lr), (head, config.head_lr)]
    return [{"params": [trained[name] for name in names], "lr": lr} for names, lr in groups if names]


def classify(net: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Compute logits (n, classes) of a batch."""
    logits: Tensor = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits


def validate(config: TrainConfig, net: nn.Module, split: Split, process: Process) -> tuple[float, float]:
    """Compute mean loss and accuracy on a split, distributed over the processes."""
    logits, labels = predict(config, net, split, process)
    sums = torch.stack((cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()))
    loss, correct = (process.total(sums.double().to(process.device)) / split.rows).tolist()
    return loss, correct


@torch.no_grad()
def predict(config: TrainConfig, net: nn.Module, split: Split, process: Process | None = None) -> tuple[Tensor, Tensor]:
    """Compute logits (n, classes) and labels (n,) of a split, or of a process's share of it, on the CPU."""
    device = next(net.parameters()).device
    net.eval()
    pairs = []
    for batch in split.batches(range(split.rows), config.batch_size, partial(prepare, config, split.facts), process):
        here = {name: values.to(device) for name, values in batch.items()}
        pairs.append((classify(net, here).float().cpu(), batch["label"].cpu()))
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def evaluate(config: TrainConfig, model: Any, split: Split) -> Evaluation:
    """Evaluate a trained model on a split: metrics, with the headline first, pictures and tables."""
    logits, labels = predict(config, model, split)
    shares, names = logits.softmax(1), [model.config.id2label[place] for place in range(logits.shape[1])]
    confidence, found = shares.max(1)
    wrong = (found != labels).nonzero()[:, 0]
    worst = wrong[shares[wrong, labels[wrong]].argsort()][:12].tolist()
    rows = [(str(split["text"][i])[:200], names[labels[i]], names[found[i]], float(confidence[i])) for i in worst]
    judged = classification(shares.numpy(), labels.numpy(), names)
    return judged.with_table("worst_mistakes", ("text", "true", "predicted", "confidence"), rows)
