"""Training: one readable loop in plain torch, for one process or many, on any device. Edit me."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from free_ml_stack import StackError
from free_ml_stack.evaluation import Evaluation, classification
from free_ml_stack.training import Checkpoints, Process, Run, Split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from .config import TrainConfig
from .data import LABELS, fits, shifted
from .model import LEVELS, DigitsNet, begin, build


def fit(
    config: TrainConfig, splits: Mapping[str, Split], run: Run, checkpoints: Checkpoints, process: Process
) -> DigitsNet:
    """Train on the train split and return the model with the weights that had the lowest validation loss.

    Started again with the checkpoints of a run that was stopped, it goes on as if it never had been.
    """
    fits(splits)
    torch.manual_seed(config.seed)
    device = process.device
    train, validation = splits["train"].on(device), splits["validation"].on(device)
    model = build(config).to(device)
    net = DistributedDataParallel(model, gradient_as_bucket_view=True) if process.size > 1 else model
    steps = train.rows // config.batch_size
    if not steps:
        raise StackError(f"batch_size {config.batch_size} is more than the {train.rows} training images")
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * steps)
    kind = process.number_format(config.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=kind is torch.float16)
    seen = Seen(device)
    at = checkpoints.resume(model=model, optimizer=optimizer, schedule=schedule, scaler=scaler, seen=seen)
    run.expect(config.epochs * steps, at.step)
    if not at.step:
        checkpoints.load_pretrained(model, config.init, begin)

    while at.epoch < config.epochs and not (config.patience and at.stale >= config.patience):
        rows = torch.from_numpy(np.random.default_rng((config.seed, at.epoch)).permutation(train.rows))
        net.train()
        while at.batch < steps:
            chosen = rows[at.batch * config.batch_size : (at.batch + 1) * config.batch_size]
            batch = train.take(process.mine(chosen), device)
            images = batch["image"]
            if config.shift:
                images = shifted(images, process.mine(offsets(config, at.step)).to(device), config.shift)
            with torch.autocast(device.type, kind, enabled=kind is not torch.float32):
                loss = cross_entropy(
                    net(images), batch["label"].long(), label_smoothing=config.label_smoothing
                )
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step()
            seen.add(loss.detach())
            at.step, at.batch = at.step + 1, at.batch + 1
            if at.step % config.log_every == 0:
                run.log(at.step, loss=seen.mean(process), lr=float(schedule.get_last_lr()[0]))
            checkpoints.step()
        at.epoch, at.batch = at.epoch + 1, 0
        loss_now, accuracy = validate(net, validation, process)
        run.log(at.step, epoch=at.epoch, validation_loss=loss_now, validation_accuracy=accuracy)
        better = loss_now < at.best
        at.best, at.stale = (loss_now, 0) if better else (at.best, at.stale + 1)
        if better:
            checkpoints.mark_best("model")
    checkpoints.finish()
    model.load_state_dict(checkpoints.best("model"))
    return model


def offsets(config: TrainConfig, step: int) -> Tensor:
    """Random shifts of a batch (batch_size, 2): drawn from seed and step alone, so that a resumed run repeats them."""
    rng = np.random.default_rng((config.seed, step, 1))
    return torch.from_numpy(rng.integers(0, 2 * config.shift + 1, (config.batch_size, 2)))


class Seen:
    """The losses since the last record, summed on the device: reading each one would stop a GPU at every step."""

    def __init__(self, device: torch.device) -> None:
        self.sum, self.count = torch.zeros((), device=device), 0

    def add(self, loss: Tensor) -> None:
        """Count one step's loss."""
        self.sum += loss
        self.count += 1

    def mean(self, process: Process) -> float:
        """The mean over steps and processes since the last call."""
        mean = process.total(self.sum).item() / (self.count * process.size)
        self.sum.zero_()
        self.count = 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """The sum and the count, for a checkpoint."""
        return {"sum": self.sum, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The sum and the count, from a checkpoint."""
        self.sum.copy_(state["sum"])
        self.count = state["count"]


def evaluate(model: DigitsNet, split: Split) -> Evaluation:
    """Judge a trained model on a split: metrics by the Hub's ids, the headline first, with pictures and tables."""
    shares, labels = predict(model, split).softmax(1), split["label"].cpu().long()
    confidence, predicted = shares.max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = wrong[shares[wrong, labels[wrong]].argsort()][:12].tolist()
    rows = [
        [grey(split["image"][i]), LABELS[labels[i]], LABELS[predicted[i]], float(confidence[i])]
        for i in worst
    ]
    found = classification(shares.numpy(), labels.numpy(), LABELS)
    return found.with_table("worst_mistakes", ("image", "true", "predicted", "confidence"), rows)


def grey(image: Tensor) -> Any:
    """An image (h, w) of grey values up to LEVELS as an array of uint8, ink dark."""
    return (255 - image.cpu().float() * 255 / LEVELS).byte().numpy()


def validate(net: nn.Module, split: Split, process: Process) -> tuple[float, float]:
    """Mean loss and accuracy over a split, each process taking its share of the rows."""
    rows = process.mine(torch.arange(split.rows))
    logits, labels = predict(net, split, rows), split["label"].cpu()[rows].long()
    sums = torch.stack((cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()))
    loss, correct = (process.total(sums.double().to(process.device)) / split.rows).tolist()
    return loss, correct


@torch.no_grad()
def predict(net: nn.Module, split: Split, rows: Tensor | None = None, batch_size: int = 512) -> Tensor:
    """Logits (n, classes) of some rows of a split, of all if none are named, on the CPU."""
    device = next(net.parameters()).device
    net.eval()
    parts = torch.split(torch.arange(split.rows) if rows is None else rows, batch_size)
    return torch.cat([net(split.take(part, device)["image"]).float().cpu() for part in parts])
