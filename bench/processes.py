"""Steps per second of two distributed training processes, relative to two independent ones, at 4 million parameters.

python bench/processes.py [--steps 60]
"""

import argparse
import multiprocessing
import socket
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "build" / "src")]
BATCH, WIDTH = 256, 1400  # examples per process; 64 * 1400 + 2 * 1400 * 1400 + … = 4 million parameters


def train(rank: int, port: int, together: bool, steps: int, results: Any) -> None:
    """Train for `steps` and report steps per second."""
    import torch
    from torch import distributed, nn
    from torch.nn.functional import cross_entropy
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    model: nn.Module = nn.Sequential(
        nn.Linear(64, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    net = DistributedDataParallel(model, gradient_as_bucket_view=True) if together else model
    images, labels = torch.randn(BATCH, 64), torch.randint(10, (BATCH,))
    for step in range(steps + 5):
        if step == 5:
            distributed.barrier()
            started = time.perf_counter()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    results.put((steps / (time.perf_counter() - started), sum(p.numel() for p in model.parameters())))
    distributed.barrier()
    distributed.destroy_process_group()


def rate(together: bool, steps: int) -> tuple[float, int]:
    """Return the steps per second of the slower of two processes, and the number of parameters."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [context.Process(target=train, args=(rank, port, together, steps, results)) for rank in range(2)]
    for process in pair:
        process.start()
    found = [results.get(timeout=600) for _ in pair]
    for process in pair:
        process.join()
    return min(value for value, _ in found), found[0][1]


def main() -> None:
    """Print both rates and their ratio, the median of five alternating rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ratios = []
    for _ in range(args.rounds):
        (apart, parameters), (together, _) = rate(False, args.steps), rate(True, args.steps)
        ratios.append(together / apart)
        print(
            f"{parameters / 1e6:.1f} M parameters: apart {apart:.1f}, together {together:.1f} steps/s, {ratios[-1]:.2f}"
        )
    print(f"two distributed processes reach {sorted(ratios)[len(ratios) // 2]:.2f} of the rate of two independent ones")


if __name__ == "__main__":
    main()
