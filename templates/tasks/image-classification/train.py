"""Training: one loop in plain torch, for one or several processes, on any device. Edit me."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from free_ml_stack.evaluation import Evaluation, classification
from free_ml_stack.training import Checkpoints, Process, Run, Split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .config import TrainConfig
from .data import prepare, shape
from .model import ImageNet, build, freeze, initial_weights
from .predict import pixels


def fit(
    config: TrainConfig, splits: Mapping[str, Split], run: Run, checkpoints: Checkpoints, process: Process
) -> ImageNet:
    """Train on the train split and return the model with the lowest validation loss.

    With the checkpoints of an interrupted run, training resumes with the same result as without the interruption.
    """
    torch.manual_seed(config.seed)
    train, held_out = decoded(config, splits["train"], config.crop), decoded(config, splits["validation"])
    size = min(config.batch_size, train.rows)
    steps = train.rows // size
    model = build(config, train.facts).to(process.device)
    net = process.parallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.epochs * steps)
    kind, device = process.number_format(config.precision), process.device.type
    scaler = torch.amp.GradScaler(device, enabled=kind is torch.float16)
    at = checkpoints.resume(model=model, optimizer=optimizer, schedule=schedule, scaler=scaler)
    run.expect(config.epochs * steps, at.step)
    if not at.step:
        checkpoints.load_pretrained(model, initial_weights(config))
    ready = partial(prepare, config, train.facts)

    while at.epoch < config.epochs and not (config.patience and at.stale >= config.patience):
        if config.backbone:
            freeze(model, at.epoch < config.frozen_epochs)
        rows = train.order(np.random.default_rng((config.seed, at.epoch)))[: steps * size]
        net.train()
        for batch in train.batches(rows, size, ready, process, (config.seed, at.epoch), at.batch):
            with torch.autocast(device, kind, enabled=kind is not torch.float32):
                loss = cross_entropy(net(batch["image"]), batch["label"], label_smoothing=config.label_smoothing)
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
        loss_now, accuracy = validate(config, net, held_out, process)
        run.log(at.step, epoch=at.epoch, validation_loss=loss_now, validation_accuracy=accuracy)
        better = loss_now < at.best
        at.best, at.stale = (loss_now, 0) if better else (at.best, at.stale + 1)
        if better:
            checkpoints.mark_best("model")
    checkpoints.finish()
    model.load_state_dict(checkpoints.best("model"))
    return model


def decoded(config: TrainConfig, split: Split, crop: float = 0.0) -> Split:
    """Decode and resize images once rather than in each epoch; random crops are taken from the whole image."""
    size = shape(config, split.facts)
    if crop or split.facts["columns"]["image"].get("shape") == size:
        return split
    return split.decoded("image", partial(pixels, shape=size))


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
    batches = split.batches(range(split.rows), 256, partial(prepare, config, split.facts), process)
    pairs = [(net(batch["image"].to(device)).float().cpu(), batch["label"].cpu()) for batch in batches]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def evaluate(config: TrainConfig, model: ImageNet, split: Split) -> Evaluation:
    """Evaluate a trained model on a split: metrics, with the headline first, pictures and tables."""
    logits, labels = predict(config, model, split)
    shares, names = logits.softmax(1), model.labels
    confidence, found = shares.max(1)
    wrong = (found != labels).nonzero()[:, 0]
    worst = wrong[shares[wrong, labels[wrong]].argsort()][:12].tolist()
    rows = [(picture(config, split, i), names[labels[i]], names[found[i]], float(confidence[i])) for i in worst]
    judged = classification(shares.numpy(), labels.numpy(), names)
    return judged.with_table("worst_mistakes", ("image", "true", "predicted", "confidence"), rows)


def picture(config: TrainConfig, split: Split, row: int) -> Any:
    """Return an image as a uint8 array (h, w[, 3]), inverted for the digits."""
    [image] = prepare(config, split.facts, split.take([row]), None)["image"]
    most = split.facts["columns"]["image"].get("most", 255)
    return np.uint8(image) if most > 16 else 255 - np.uint8(image * (255 / (most or 1)))
